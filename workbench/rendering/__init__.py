"""Pictures of one answer: an HTML fragment, a page, a heatmap over training, a terminal. Use it through render.py."""
