"""Scoring on a GPU as a share of its matrix rate."""
