"""Names of the roles that a model's weights have (roles.py), without torch, for the configuration."""

LANGUAGE, CONNECTOR, VISION = ROLES = ("language", "connector", "vision")
