"""Measure a model on a packed store: quality, cost, and what the bit selectors choose."""
