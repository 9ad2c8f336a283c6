"""Plain tables between the dear half and the cheap half."""
