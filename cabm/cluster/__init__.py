"""Folders and buckets of any size, upscaled by many workers. The only importer of Ray."""
