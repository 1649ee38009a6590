"""The integer programs of trained backbones, made of their PyTorch modules: one function per backbone."""
