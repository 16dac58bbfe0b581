"""Recipes of curation, each a config of its own."""
