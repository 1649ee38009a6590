"""A page to upscale images on, in a browser; the only importer of Gradio.

`jobs` runs one image in a thread, `visits` keeps what a visitor has on the server, `models` what can be
chosen. `panels`, `bit_map` and `model_card` make the parts of the page, `page` puts them together, `server`
serves it.
"""
