"""Use a model to make tables."""
