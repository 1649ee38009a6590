"""A project's params.yaml, typed; its folders; the presets it can start from."""
