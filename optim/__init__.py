"""Pillar 4: Optax chains from config."""
