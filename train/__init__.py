"""Brings the pillars together: the pure step and the loop around it."""
