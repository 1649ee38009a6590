"""Other runtimes on the float model, to compare the integer engine with: ONNX Runtime and ncnn.

Each takes the network as its users would: converted, quantized to int8 where its packages have the tools,
and run with default settings. OpenVINO is in `cabm.bench.openvino`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cabm.models.base import Backbone

Run = Callable[[Tensor], list[np.ndarray]]
"""Upscales tiles (N,3,h,w) float32 in 0..255 one after another: N results (1,3,h*scale,w*scale)."""


class OutputOnly(nn.Module):
    """A backbone that returns the upscaled image alone, as converters need it."""

    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale (N,3,h,w)."""
        return self.model(x).sr


def missing(*modules: str) -> str | None:
    """Return why a runtime cannot be timed, or None if its modules are installed."""
    absent = [name for name in modules if find_spec(name) is None]
    return f'{" and ".join(absent)} not installed; pip install "cabm[bench]"' if absent else None


def onnx_runtime_runners(model: Backbone, calibration: Tensor, threads: int) -> dict[str, Run]:
    """Return runners in ONNX Runtime by precision: ``int8`` (static quantization, per channel), ``fp32``.

    Args:
        model: a float backbone.
        calibration: (N,3,h,w) float32 tiles in 0..255; the runners take tiles of this size.
        threads: CPU threads.
    """
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Tiles(CalibrationDataReader):
        def __init__(self) -> None:
            self._tiles = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            tile = next(self._tiles, None)
            return None if tile is None else {"image": tile[None].numpy()}

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder, _silent():
        plain, prepared, int8 = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        names = {"input_names": ["image"], "output_names": ["upscaled"]}
        torch.onnx.export(OutputOnly(model), (calibration[:1],), plain, dynamo=False, **names)
        quant_pre_process(plain, prepared)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(prepared, int8, Tiles(), **kinds)
        sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in (("int8", int8), ("fp32", plain))
        }

    def runner(session: onnxruntime.InferenceSession) -> Run:
        return lambda tiles: [session.run(None, {"image": tile[None].numpy()})[0] for tile in tiles]

    return {name: runner(session) for name, session in sessions.items()}


def ncnn_runners(model: Backbone, calibration: Tensor, threads: int) -> dict[str, Run]:
    """Return runners in ncnn by precision: ``fp32``. Its int8 tools are not on PyPI.

    Args:
        model, calibration, threads: as for `onnx_runtime_runners`.
    """
    import ncnn
    import pnnx

    net = ncnn.Net()
    net.opt.num_threads = threads
    with tempfile.TemporaryDirectory() as folder, _silent():
        names = {f"ncnn{kind}": str(Path(folder) / f"model.{kind}") for kind in ("param", "bin", "py")}
        names |= {
            f"pnnx{kind}": str(Path(folder) / f"pnnx.{kind}") for kind in ("param", "bin", "py", "onnx")
        }
        example = (calibration[:1],)
        pnnx.export(OutputOnly(model), str(Path(folder) / "model.pt"), example, fp16=False, **names)
        net.load_param(names["ncnnparam"])
        net.load_model(names["ncnnbin"])

    def run(tiles: Tensor) -> list[np.ndarray]:
        results = []
        for tile in tiles:
            with net.create_extractor() as extractor:
                extractor.input("in0", ncnn.Mat(tile.numpy()).clone())
                results.append(np.array(extractor.extract("out0")[1])[None])
        return results

    return {"fp32": run}


def fastest(runners: Mapping[str, Run], tiles: Tensor) -> tuple[str, Run]:
    """Return the fastest of runners, after one call of each to warm up, and its name."""
    if len(runners) == 1:
        return next(iter(runners.items()))
    seconds = {}
    for name, run in runners.items():
        run(tiles[:1])
        started = time.perf_counter()
        run(tiles)
        seconds[name] = time.perf_counter() - started
    name = min(seconds, key=seconds.__getitem__)
    return name, runners[name]


@contextmanager
def _silent() -> Iterator[None]:
    """Keep converters, which also print from other processes, from writing to the terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with Path(os.devnull).open("wb") as nothing:
            for number in (1, 2):
                os.dup2(nothing.fileno(), number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
