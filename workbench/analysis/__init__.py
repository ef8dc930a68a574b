"""What a run says when it is asked: pure functions of run folders, traces and a selection. No page, no state.

table.py      a table with its run, its units and, if it is empty, what to do about it
runs.py       the list of runs, their curves, the difference of two configurations
tokens.py     a page of answers; one answer, ready to be drawn
regimes.py    shares of regimes over steps, kinds and truths, by tokens and by loss
movement.py   probes: which tokens changed hands, from where to where, how often
compare.py    two runs on the same example, their metrics and accuracies side by side
illusion.py   what was learned and what was only imitated
geometry/     the update of a run's weights: size, sparsity, rank, place
summary.py    what a run did, as text; report.py, as one HTML file
figures.py    plotly figures of these tables, in one house style
"""
