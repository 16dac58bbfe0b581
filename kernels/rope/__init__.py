"""Rotation of queries and keys by their positions: api, reference, xla, and a kernel for TPUs."""
