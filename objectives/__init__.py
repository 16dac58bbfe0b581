"""Pillar 3: what a step learns from."""
