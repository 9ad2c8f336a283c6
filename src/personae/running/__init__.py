"""Stores, runs, progress."""
