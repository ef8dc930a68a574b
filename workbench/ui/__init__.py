"""The app: a page over the runs folder. One tab per file; it shows what workbench.analysis says and computes nothing.

context.py   what every tab is given: the folders, the header's components, and how a mistake becomes a sentence
shell.py     the header, the tabs, the address
launch.py    a form of a configuration; starts a run
watch.py     one run as it goes
studies.py   a grid of runs: state, differences with intervals
"""
