"""Causal grouped-query self attention that also reports its largest logit."""
