"""Studies: a grid of methods, options and seeds from one file, and what is really true of it.

plan.py        the file -> variants with their configurations, all checked before anything runs
run.py         worker processes side by side: started, stopped, resumed
worker.py      one process that trains and evaluates many runs
forkserver.py  the process that workers are forked from
evaluate.py    evaluate models, each once
records.py     every question of every run, one row each
compare.py     every row against any other, from the answers alone
bootstrap.py   paired intervals over seeds and questions
measures.py    what is measured of a run, and the comparison of variants
report.py      Parquet, Markdown, figure
figures.py     dots with intervals
status.py      a study as its folder tells it, while it runs and afterwards
"""
