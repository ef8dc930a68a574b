"""The app: a page over the runs folder. One tab per file; it shows what workbench.analysis says and computes nothing.

server.py      the web server: hosts, origins, bounds of requests
layout.py      the header, the tabs, the address
context.py     what every tab is given: the folders, the header's components, and how a mistake becomes a sentence
components.py  pieces of HTML that tabs share
form.py        a form of a configuration
tabs/          one file per tab
command.py, arguments.py   `workbench app`, and the options of all commands
"""
