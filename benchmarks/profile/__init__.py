"""Profiles and reach where the answer is known."""
