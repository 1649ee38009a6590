"""Edge-to-bit tables: built from observations, looked up by edge score; bypass and cost."""
