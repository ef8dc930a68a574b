"""Rows, images, contexts and grading: what is asked and what counts as right."""
