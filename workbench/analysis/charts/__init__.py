"""Charts of one run or several: every recorded metric over steps, tokens or time.

recorded.py   all metrics of a run in one table, with the tokens and the seconds at every step
groups.py     quality, supervision, optimization, speed: the group, unit and default chart of every metric
domains.py    accuracy, confidence and regime shares by domain, token type and visibility, as further metrics
smoothing.py  exponential moving average with bias correction
seeds.py      runs that differ only in their seed: mean and band
curves.py     the curves of one chart: chosen metrics of several runs, smoothed, over a chosen axis
marks.py      steps with checkpoints, evaluations and values that are not finite
headlines.py  first and last accuracy, over-confidence and speed, with intervals
figures.py    plotly figures of curves and marks
"""
