"""Calibration in a world where everything is known."""
