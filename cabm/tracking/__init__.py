"""Experiment tracking and model registry. The only importer of MLflow."""
