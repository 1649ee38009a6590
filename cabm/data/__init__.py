"""Photographs on disk: folder layouts of data sets, packed stores and training patches."""
