"""The weight update of a run: measure, save and draw its size, sparsity, rank and location."""
