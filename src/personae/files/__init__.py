"""Formats people bring: episodes, casts, the reference population."""
