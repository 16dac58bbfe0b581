"""Pillar 2: the Flax NNX transformer."""
