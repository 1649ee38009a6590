"""The machine: CPU features, threads, memory, compiled loops."""
