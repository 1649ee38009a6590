"""One integer program per backbone: its layers in order, on codes."""
