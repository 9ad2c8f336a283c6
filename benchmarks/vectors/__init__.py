"""Persona vectors against other tools, and against worlds whose beliefs are known."""
