"""Time and memory of fitting weights to a million conversations."""
