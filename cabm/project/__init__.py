"""A project: its params.yaml as typed settings, its folders, and the presets of params.yaml."""
