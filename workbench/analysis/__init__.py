"""Tables and figures of runs: pure functions of run folders, traces and a selection, without page or state.

table.py      a table with its run, its units, and a message if it is empty
charts/       every recorded metric of one run or several, over steps, tokens or time; headline numbers
runs.py       list of runs, metric curves, difference of two configurations
tokens.py     pages of answers; one answer as a TokenView
regimes.py    regime shares by tokens and by loss, over steps, kinds, visibilities and domains
movement.py   probes: regime changes of fixed tokens over training
compare.py    two runs on the same example; their metrics and accuracies side by side
illusion.py   accuracy, calibration, and loss on tokens that only the evidence explains
leakage.py    the four verdicts: evidence, gain, over-confidence, loss that only the evidence explains
changes.py    two scorings of an answer compared token by token
addresses.py  the page's address of an answer; query.py, answers for scripts; quotes.py, quotes checked by the trace
geometry/     the weight update of a run: size, sparsity, rank, location
summary.py    summary of a run as text; report.py, as an HTML file
figures.py    plotly figures of these tables; style.py, their common style
"""
