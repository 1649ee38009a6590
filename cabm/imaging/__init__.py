"""Pixels and files: reading, writing, resizing and colour, without knowledge of networks."""
