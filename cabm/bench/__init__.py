"""Timings against other engines and against PyTorch itself, as ratios within one run."""
