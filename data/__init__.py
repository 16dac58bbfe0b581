"""Pillar 1: raw sources to documents, tokens, rows and batches."""
