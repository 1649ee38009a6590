"""Measure models on packed stores: quality, cost, and the bits that selectors choose."""
