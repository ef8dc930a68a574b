"""Small random models of every model type of transformers, and a trial that shows how the workbench trains each."""
