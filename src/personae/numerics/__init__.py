"""Arithmetic and statistics on arrays; knows no persona."""
