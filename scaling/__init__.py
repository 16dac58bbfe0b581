"""Pillar 5: parametrisation, scaling laws, topologies and plans."""
