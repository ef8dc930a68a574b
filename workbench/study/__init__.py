"""Studies: a grid of methods, options and seeds from one file, and what is really true of it.

plan.py        the file -> variants with their configurations, all checked before anything runs
work.py        one process that trains and asks many runs
conduct.py     several such processes side by side, started, stopped and gone on with
asking.py      models are asked, once
questions.py   every question of every run, one row each
against.py     every row against any other, from the answers alone
host.py        the process that workers are forked from
bootstrap.py   paired intervals over seeds and questions
measures.py    what is measured of a run, and the comparison of variants
report.py      Parquet, Markdown, figure
figures.py     dots with intervals
folder.py      a study as its folder tells it, while it runs and afterwards
"""
