"""The web app over a folder of runs. Tabs show results of workbench.analysis and compute nothing themselves.

server.py        the web server: hosts, origins, limits on requests
layout.py        header, the five places and their views, address
context.py       folders, components shared by all tabs, errors as messages
components.py    pieces of HTML that tabs share
form.py          a configuration as a form
live_updates.py  refresh a tab while its run trains
tabs/            one file per tab
command.py, arguments.py   `workbench app`, and the options of all commands
"""
