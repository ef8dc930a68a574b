"""Studies: run a grid of methods, options and seeds from one file, and compare its variants with paired intervals.

plan.py        parse and validate the file: variants with their configurations
run.py         start, stop and resume the processes of the tasks
task.py        train and evaluate one run, in its process
evaluate.py    evaluate each model once
records.py     store every answer of every run, one row each
compare.py     compare every row with any other, from stored answers
bootstrap.py   paired intervals over seeds and questions
measures.py    measures of a run, and comparisons of variants
report.py      write Parquet, Markdown and the figure
preamble.py    header of a report
payoff.py      gain of the teachers from the evidence
checks.py      check models and data before a run starts
figures.py     plot differences with intervals
status.py      read the state of a study from its folder
"""
