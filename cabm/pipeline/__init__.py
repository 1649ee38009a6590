"""The stages as functions, which `stages/` runs and Python can call."""
