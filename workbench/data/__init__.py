"""Data: rows, images, contexts, grading, importers and the built-in scenes."""
