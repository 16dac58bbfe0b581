"""Configs: one file, one experiment, one lab note."""
