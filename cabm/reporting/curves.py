"""Training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from cabm.reporting.style import FAINT, INK, plain

# column, label, colour; from top to bottom
_PANELS = (
    ("train_l1", "training L1 loss", INK),
    ("validation_psnr", "validation PSNR, dB", "#6b1353"),
    ("train_fab", "FAB of training batches", "#2f7f86"),
)
_LOG_RATIO = 3.0  # largest to smallest loss above which the axis is logarithmic


def training_curves(rows: Sequence[Mapping[str, float]]) -> Figure | None:
    """Draw loss, validation PSNR and mean bits during training.

    Args:
        rows: rows of ``curves/STAGE.csv``. Values that were not measured in a row are absent.

    Returns:
        None if there is nothing to draw.
    """
    shown = [panel for panel in _PANELS if any(panel[0] in row for row in rows)]
    if not shown:
        return None
    figure = Figure(figsize=(4.6, 0.5 + 1.35 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (column, label, color) in zip(panels, shown, strict=True):
        points = [(row["step"], row[column]) for row in rows if column in row]
        _draw_curve(axes, points, color, logarithmic=column == "train_l1")
        axes.set_title(label, loc="left", color=color, fontsize=9)
    panels[-1].set_xlabel("step", color=FAINT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _draw_curve(
    axes: Axes, points: Sequence[tuple[float, float]], color: str, *, logarithmic: bool
) -> None:
    """Draw (step, value) points and label the last value."""
    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) < 25 else None
    axes.plot(steps, values, color=color, linewidth=1.4, marker=marker, markersize=3)
    if logarithmic and min(values) > 0 and max(values) > _LOG_RATIO * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_locator(MaxNLocator(1))
        axes.yaxis.set_minor_formatter("")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
    if max(values) - min(values) < 1e-9:  # matplotlib would zoom in on rounding errors
        axes.set_ylim(values[0] - 0.5, values[0] + 0.5)
    axes.annotate(
        f"{values[-1]:.2f}",
        (steps[-1], values[-1]),
        (4, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=8.5,
    )
    axes.margins(x=0.02)
    plain(axes)
