"""Export a quantized model to ONNX, at one row of bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cabm.engine.compiling import why_not
from cabm.engine.packing import Row
from cabm.errors import InputError, require
from cabm.files import atomic_write
from cabm.models.base import Backbone
from cabm.tables.table import EdgeToBitTable


def choose_row(
    model: Backbone,
    table: EdgeToBitTable | None,
    *,
    score: float | None = None,
    bits: Sequence[int] | None = None,
) -> Row:
    """Return one row of bits to run a model at.

    Args:
        model: a quantized backbone.
        table: its edge-to-bit table, if it has one.
        score: take the table's row for this edge score; default: the table's median threshold.
        bits: take this width in all adaptive layers (1,), or these widths (L,).

    Returns:
        (L,) widths; None for a PAMS model.

    Raises:
        InputError: both ``score`` and ``bits``; a score without a table, or out of range; or a CADyQ model
            without ``bits``.
    """
    if score is not None and bits is not None:
        raise InputError("give an edge score or bits, not both")
    if bits is not None:
        return tuple(bits) * model.num_adaptive if len(bits) == 1 else tuple(bits)
    if table is None:
        kind = model.precision.kind
        if kind == "cadyq":
            raise InputError("a cadyq model has no edge-to-bit table; give bits")
        if score is not None:
            raise InputError(f"a {kind} model has no edge-to-bit table; omit the score")
        return None
    try:
        row = table.lookup(np.median(table.thresholds) if score is None else score)
    except ValueError as error:
        raise InputError(f"edge score {score}: {error}") from None
    return tuple(row.tolist())


def export_onnx(model: Backbone, path: str | Path, bits: Row = None) -> None:
    """Write a quantized model at one row of bits as ONNX: "image" to "upscaled", both 0..255 float32.

    Height, width and batch size are dynamic. The bits are constants of the file: if they were an input,
    ONNX Runtime could not use integer convolutions, which need constant scales.

    Args:
        model: a quantized backbone on the CPU, with float head and tail.
        path: the file, replaced as a whole.
        bits: (L,) widths from the search space; None for PAMS models.

    Raises:
        InputError: onnx is not installed, the model cannot be exported, or bits that do not fit it.
    """
    require("export to onnx", "onnx")
    reason = why_not(model)
    if reason is not None:
        raise InputError(f"export to onnx: {reason}")
    kind, space = model.precision.kind, list(model.precision.search_space)
    wanted, found = 0 if kind == "pams" else model.num_adaptive, len(bits or ())
    if found != wanted:
        raise InputError(f"export to onnx: this {kind} {model.name} takes {wanted} bits, found {found}")
    unknown = sorted(set(bits or ()) - set(space))
    if unknown:
        raise InputError(f"export to onnx: bits {unknown} are not in the search space {space}")
    from cabm.engine.onnx_models import onnx_model

    with atomic_write(path) as temporary:
        temporary.write_bytes(onnx_model(model, bits).SerializeToString())
