"""What workers gain, and what the store and the executor cost."""
