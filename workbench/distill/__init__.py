"""One step: the vocabulary of methods, rollouts, scoring, routing, losses."""
