"""Worlds on several seeds."""
