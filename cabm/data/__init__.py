"""Photographs on disk: the layouts that datasets have, the packed stores that training reads, and
the patches cut from them."""
