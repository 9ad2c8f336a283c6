"""Benchmarks: each a command, its result stored under benchmarks/results."""
