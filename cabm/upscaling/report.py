"""What upscaling an image took: `Report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cabm.models.facts import ModelFacts
from cabm.quant.levels import PAMS_BITS
from cabm.tables.cost import bitops, fab
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import TilePlan
from cabm.upscaling.size import Target
from cabm.upscaling.trace import Trace


@dataclass(frozen=True)
class Report:
    """What upscaling one image took.

    Attributes:
        target: the size of the result, and how it was computed.
        plans: the tiles of each pass of the model over the image; empty if it did not run.
        bits: (N,L) bits of each tile of the first pass, zeros for tiles that bypassed the network; None for
            models without bits.
        parts: which parts of these tiles bypassed the network; None for models without a table.
        scores: (N,) edge score of each of these tiles; None for models without a table.
        tile_seconds: (N,) time of each of these tiles, see `Trace`; None if the model did not run.
        fab: mean bits of the tiles of all passes that entered the network; None for models without bits.
        bypassed: share of the tiles' pixels that bypassed the network in all passes, 0..1.
        bitops_saved: share of the bit operations saved against the same network in float, 0..1.
        seconds: by phase: decode, score, look up, network, merge, encode (waiting for the encoder), total.
        engine: engine and device, such as ``int8 on cpu``.
        notes: conversions of the pixels that the user should know of.
    """

    target: Target
    plans: tuple[TilePlan, ...]
    bits: np.ndarray | None
    parts: TileParts | None
    scores: np.ndarray | None
    tile_seconds: np.ndarray | None
    fab: float | None
    bypassed: float
    bitops_saved: float
    seconds: dict[str, float]
    engine: str
    notes: tuple[str, ...] = ()

    @property
    def plan(self) -> TilePlan:
        """The tiles of the first pass. An `IndexError` if the model did not run."""
        return self.plans[0]


def report_on(
    model: ModelFacts,
    target: Target,
    plans: Sequence[TilePlan],
    traces: Sequence[Trace],
    *,
    seconds: dict[str, float],
    engine: str,
    notes: tuple[str, ...],
) -> Report:
    """Return the report on an image.

    Args:
        model: the model.
        target: see `Report`.
        plans, traces: the tiles of each pass, and what they took.
        seconds, engine, notes: see `Report`.
    """
    bits = [_counted_bits(model, trace) for trace in traces]
    parts = [
        trace.parts or TileParts.all_computed(len(plan), plan.tile_height, plan.tile_width)
        for plan, trace in zip(plans, traces, strict=True)
    ]
    costs = {"convention": "tile", "weight_bits": model.precision.weight_bits}
    used = sum(
        bitops(model.layers, *counted, **costs, computed=of_tiles.work)
        for *counted, of_tiles in zip(bits, plans, parts, strict=True)
    )
    full = sum(bitops(model.layers, None, plan, **costs) for plan in plans)
    has_bits = bool(bits) and bits[0] is not None
    first = traces[0] if traces else Trace()
    return Report(
        target=target,
        plans=tuple(plans),
        bits=first.bits,
        parts=first.parts,
        scores=first.scores,
        tile_seconds=first.tile_seconds,
        fab=fab(np.concatenate([np.atleast_2d(row) for row in bits])) if has_bits else None,
        bypassed=float(np.concatenate([of_tiles.share for of_tiles in parts]).mean()) if parts else 0.0,
        bitops_saved=1 - used / full if full else 0.0,
        seconds=seconds,
        engine=engine,
        notes=notes,
    )


def _counted_bits(model: ModelFacts, trace: Trace) -> np.ndarray | None:
    """Return the bits of a pass in the adaptive layers: (N,L), or (L,) if all tiles have the same."""
    return np.full(model.num_adaptive, PAMS_BITS) if model.precision.kind == "pams" else trace.bits
