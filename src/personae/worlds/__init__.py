"""Small worlds in which the Persona Selection Model is true, or false in a known way, and can be checked exactly."""
