"""Where tiles lie, how strong their edges are, which parts of them are computed, how they blend."""
