"""Evaluations: their records, how they are made, what they say of a run."""
