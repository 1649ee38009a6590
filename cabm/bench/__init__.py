"""`cabm bench`: time upscaling, tiling and training, as ratios within one run.

Absolute times say little on a shared machine, so every round times all contenders one after another, and
ratios are taken within rounds.
"""
