"""Judges the result."""
