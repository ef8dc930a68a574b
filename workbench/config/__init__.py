"""Configuration of runs: schema, and checks of the configured models."""
