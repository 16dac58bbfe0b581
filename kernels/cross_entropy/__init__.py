"""Cross entropy of a linear output layer, without holding its logits."""
