"""The course of a training step as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from cabm.reporting.style import FAINT, INK, plain

# column, axis label, colour; in this order from top to bottom
_PANELS = (
    ("train_l1", "L1 of training", INK),
    ("validation_psnr", "validation, dB", "#6b1353"),
    ("train_fab", "FAB of batches", "#2f7f86"),
)
_STEEP = 3.0  # a ratio of losses from which a logarithmic axis shows more


def training_curves(rows: Sequence[Mapping[str, float]]) -> Figure | None:
    """Draw loss, validation and mean bits over the training steps.

    Args:
        rows: of ``curves/STAGE.csv``; what was not measured in a row is absent.

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
        steps, values = zip(*points, strict=True)
        sparse = len(points) < 25
        axes.plot(steps, values, color=color, linewidth=1.4, marker="o" if sparse else None, markersize=3)
        if column == "train_l1" and min(values) > 0 and max(values) > _STEEP * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_locator(MaxNLocator(1))
            axes.yaxis.set_minor_formatter("")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        if max(values) - min(values) < 1e-9:  # a straight line needs no finer axis than this
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
        axes.set_title(label, loc="left", color=color, fontsize=9)
        axes.margins(x=0.02)
        plain(axes)
    panels[-1].set_xlabel("training step", color=FAINT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure
