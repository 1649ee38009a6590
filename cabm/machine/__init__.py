"""What the machine offers: CPU features, threads, memory, compiled loops."""
