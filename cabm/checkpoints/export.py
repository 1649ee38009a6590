"""`cabm export`: ONNX files per row of bits, and packed int8 weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from cabm.checkpoints.packed import pack_state
from cabm.engine.integer import why_not
from cabm.engine.onnx_graph import GraphBuilder
from cabm.engine.onnx_models import GRAPHS
from cabm.engine.packing import Row
from cabm.errors import InputError
from cabm.files import atomic_directory, atomic_write, write_json
from cabm.models.base import Backbone

ROWS_FILE = "rows.json"
FORMAT = "cabm.onnx/1"


@dataclass(frozen=True)
class OnnxAgreement:
    """How an exported model compares with the one it was made of.

    Attributes:
        mean_difference: mean |difference| in levels of 0..255.
        psnr: of one result against the other, in dB.
        integer_convolutions: convolutions that ONNX Runtime runs by integer kernels.
        float_convolutions: the others.
    """

    mean_difference: float
    psnr: float
    integer_convolutions: int
    float_convolutions: int


def export_onnx(model: Backbone, path: str | Path, bits: Row = None) -> None:
    """Write a quantized model at one row of bits as ONNX: "image" to "upscaled", both 0..255.

    The bits are part of the file. As an input they would make the steps of all codes variables, and
    ONNX Runtime then falls back to float convolutions.

    Args:
        model: a quantized backbone on the CPU, with float ends.
        path: the file, replaced as a whole.
        bits: (L,) widths from the search space; None for PAMS models.

    Raises:
        InputError: onnx is not installed (extra ``onnx``), the model cannot be exported, or wrong bits.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(_graph(model, bits).SerializeToString())


def export_onnx_rows(model: Backbone, directory: str | Path, rows: np.ndarray) -> list[Path]:
    """Write one ONNX file per distinct row of bits, and rows.json that says which is which.

    Args:
        model: as in `export_onnx`.
        directory: replaced as a whole.
        rows: (T,L) rows of a table.

    Returns:
        The files, in the order of rows.json.

    Raises:
        InputError: as in `export_onnx`.
    """
    distinct = [tuple(row) for row in np.unique(rows, axis=0).tolist()]
    names = [f"row_{number:03}.onnx" for number in range(len(distinct))]
    directory = Path(directory)
    with atomic_directory(directory) as temporary:
        for name, row in zip(names, distinct, strict=True):
            export_onnx(model, temporary / name, row)
        listed = [{"file": name, "bits": list(row)} for name, row in zip(names, distinct, strict=True)]
        about = {"backbone": model.name, "scale": model.scale, "layers": list(model.layer_names)}
        write_json(temporary / ROWS_FILE, {"format": FORMAT, **about, "rows": listed})
    return [directory / name for name in names]


def compare_onnx(model: Backbone, path: str | Path, tiles: Tensor, bits: Row = None) -> OnnxAgreement:
    """Run an exported file in ONNX Runtime beside the simulated model.

    Args:
        model: what was exported.
        path: the file.
        tiles: (N,3,h,w) in 0..255.
        bits: the row it was exported at.

    Raises:
        InputError: onnxruntime is not installed (extra ``onnx``).
    """
    onnx, runtime = _import("onnx"), _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    with TemporaryDirectory() as directory:
        optimized = Path(directory, "optimized.onnx")
        options.optimized_model_filepath = str(optimized)
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    x = tiles.float().contiguous()
    found = torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    with torch.inference_mode():
        wanted = model(x, None if bits is None else torch.tensor([bits] * len(x))).sr
    difference = found.clamp(0, 255) - wanted.clamp(0, 255)
    return OnnxAgreement(
        mean_difference=float(difference.abs().mean()),
        psnr=float(10 * torch.log10(255**2 / difference.square().mean().clamp_min(1e-12))),
        integer_convolutions=sum(kind in ("QLinearConv", "ConvInteger") for kind in kinds),
        float_convolutions=sum(kind in ("Conv", "FusedConv") for kind in kinds),
    )


def export_packed(model: Backbone, path: str | Path) -> None:
    """Write the weights as int8 codes and scales, the rest as float16 (`cabm.checkpoints.packed`).

    Raises:
        InputError: weights that take the activation's width.
    """
    tensors = pack_state(model)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "cabm.packed_weights/1"})


def _graph(model: Backbone, bits: Row) -> Any:
    onnx = _import("onnx")
    reason = why_not(model)
    if reason is not None:
        raise InputError(f"export to onnx: {reason}")
    wanted = None if model.precision.kind == "pams" else model.num_adaptive
    if (None if bits is None else len(bits)) != wanted:
        kind, found = model.precision.kind, "none" if bits is None else len(bits)
        raise InputError(
            f"export to onnx: a {kind} {model.name} takes {wanted or 'no'} bits, found {found}"
        )
    if bits is not None and not set(bits) <= set(model.precision.search_space):
        raise InputError(
            f"export to onnx: bits {sorted(set(bits))} are not all in {list(model.precision.search_space)}"
        )
    builder = GraphBuilder(onnx)
    with torch.no_grad():
        GRAPHS[model.name](builder, model.eval(), bits)
    properties = {"backbone": model.name, "bits": "8" if bits is None else " ".join(map(str, bits))}
    return builder.build(model.scale, properties)


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise InputError(f"{name} is not installed; pip install cabm[onnx]") from None
