"""Tiles of an image: their positions, edge scores, bypassed parts, and blending."""
