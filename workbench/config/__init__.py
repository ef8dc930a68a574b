"""A run's configuration: its schema, and whether the models that it names are there."""
