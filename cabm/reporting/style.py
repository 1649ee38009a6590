"""The style that all figures share: colours of bits, and plain axes."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize, to_rgb

INK, FAINT, GRID = "#262626", "#8c8c8c", "#e9e9e9"
HATCH = "////"  # of bypassed parts
WIDEST = 8
"""The largest bit-width that has a colour of its own."""

# from pale blue (few bits) to dark red (8): legible in gray and to the colour-blind
_BIT_COLORS = {
    2: "#e7f0fa",
    3: "#c5dcf0",
    4: "#93c2e3",
    5: "#6d9fd2",
    6: "#7a72b8",
    7: "#8a3f8f",
    8: "#6b1353",
}


def bit_color(width: int) -> str:
    """Return the colour of a bit-width."""
    return _BIT_COLORS[min(width, WIDEST)]


def bit_colormap(scale: Normalize) -> ListedColormap:
    """Return the colours of all bit-widths and the values between, over the range of ``scale``."""
    colors = np.array([to_rgb(color) for color in _BIT_COLORS.values()])
    values = np.linspace(scale.vmin, scale.vmax, 256)
    channels = [np.interp(values, list(_BIT_COLORS), channel) for channel in colors.T]
    return ListedColormap(np.stack(channels, axis=1))


def bit_scale(fab_per_tile: np.ndarray) -> Normalize:
    """Return the range of colours for mean bits of tiles: (n,), those that entered the network."""
    return Normalize(min(4.0, fab_per_tile.min(initial=4.0)), WIDEST)


def plain(axes: Axes) -> None:
    """Remove the frame at the top and right, and put the grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
