"""Evaluations: run them, store their records, and derive findings."""
