"""Experiment tracking and model registry; the only package that imports MLflow."""
