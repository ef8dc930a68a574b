"""Rollouts that another trainer logged: rows of prompts and answers in its own layout.

reading.py   a file or folder of them -> RolloutFile
rows.py      one row -> RolloutRow
layouts.py   the trainers' columns
matching.py  the example of every row, from the row itself or from a file of examples
"""
