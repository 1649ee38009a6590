"""One image through tiles, then whole files, then folders of them."""
