"""A run from start to end: loop, learner, resume, probes, health, check, export."""
