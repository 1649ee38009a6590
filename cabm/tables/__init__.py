"""From a tile's edge score to the bits of every layer: tables, bypass, and what they cost."""
