"""Personas, casts, episodes: the words of the field as types."""
