"""Upscale images: tiles, then whole images, then files and folders.

From the bottom up: a runner upscales tiles (`runners` says how, `torch_runners` has the simulated model,
`engine_choice` chooses one, `loading` loads a model with it); `tiles` runs all tiles of an image in memory;
`streaming` runs an image of any size, a few rows of tiles at a time; `upscaler` has the class that users
call; `request`, `tasks` and `jobs` upscale files and folders.
"""
