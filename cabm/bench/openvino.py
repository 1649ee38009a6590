"""OpenVINO on the float model, quantized to int8 after training: a peer for the integer engine."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout

import numpy as np
import torch
from torch import Tensor

from cabm.bench.peers import OutputOnly
from cabm.models.base import Backbone


def int8_runner(
    model: Backbone, calibration: Tensor, threads: int, hint: str
) -> Callable[[Tensor], list[np.ndarray]]:
    """Quantize a float model with NNCF's defaults and return a function that upscales tiles.

    Args:
        model: a float backbone.
        calibration: (N,3,h,w) float32 tiles in 0..255; the runner takes tiles of this size.
        threads: CPU threads.
        hint: OpenVINO's performance hint, ``LATENCY`` or ``THROUGHPUT``.
    """
    import nncf
    import openvino as ov

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with torch.no_grad():
        converted = ov.convert_model(
            OutputOnly(model), example_input=calibration[:1], input=[1, *calibration.shape[1:]]
        )
    samples = nncf.Dataset([tile[None].numpy() for tile in calibration])
    with redirect_stdout(sys.stderr):  # NNCF draws progress bars, and --json prints to stdout
        quantized = nncf.quantize(converted, samples)
    options = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    compiled = ov.compile_model(quantized, "CPU", options)
    queue = ov.AsyncInferQueue(compiled)

    def run(tiles: Tensor) -> list[np.ndarray]:
        results: list[np.ndarray] = [np.empty(0)] * len(tiles)

        def keep(request: ov.InferRequest, index: int) -> None:
            results[index] = request.get_output_tensor(0).data.copy()

        queue.set_callback(keep)
        for index, tile in enumerate(tiles):
            queue.start_async({0: tile[None].numpy()}, index)
        queue.wait_all()
        return results

    return run
