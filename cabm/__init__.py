"""Content-aware bit mapping for super-resolution of large images."""

__version__ = "0.1.0"
