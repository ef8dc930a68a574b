"""Score rollouts that another trainer sampled, without training.

score.py     rollout file + models -> run folder
given.py     logged answers -> rollouts of a student
steps.py     score the steps of a file into a run folder
recorder.py  score, route and record the rollouts of one step
"""
