"""Real servers on loopback: what they can do, and whether their numbers are ours."""
