"""Linear layer: api, reference, and the weight gradient for CPUs."""
