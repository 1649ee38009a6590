"""Compare bicubic upscaling and the models of all training stages on the test sets."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from cabm.checkpoints.model_directory import LoadedModel, load_model
from cabm.data.store import PackedStore
from cabm.evaluation.store import ImageResult, evaluate_store, mean_results
from cabm.files import atomic_write
from cabm.imaging.resize import upscale_bicubic
from cabm.models import Backbone
from cabm.project.sections import EvaluateSettings
from cabm.quant.levels import PAMS_BITS
from cabm.tables.controls import CONTROLS, constant, shuffled
from cabm.tables.cost import Convention, bitops
from cabm.tables.observations import Observations
from cabm.tiling.plan import plan
from cabm.upscaling.engine_choice import ChosenRunner, Engine, choose_runner
from cabm.upscaling.tiles import TiledResult, super_resolve

TRAINING_STAGES = ("full_precision", "pams", "cadyq", "cabm")


@dataclass(frozen=True)
class Method:
    """A method of upscaling to compare.

    Attributes:
        name: "bicubic", a training stage, or a control.
        loaded: the model; None for bicubic.
        chosen: what runs the model; None for bicubic.
    """

    name: str
    loaded: LoadedModel | None = None
    chosen: ChosenRunner | None = None

    def upscale(self, settings: EvaluateSettings, scale: int, whole: bool) -> Callable[..., TiledResult]:
        """Return a function that upscales one image, in tiles or whole."""
        if self.chosen is None or self.loaded is None:
            return lambda image: _bicubic(image, scale)
        loaded, runner = self.loaded, self.chosen.runner
        return lambda image: super_resolve(
            runner,
            image,
            table=loaded.table,
            tile=None if whole else settings.tile,
            stride=settings.stride,
            size_multiple=loaded.model.size_multiple,
        )


def load_methods(models: Path, engine: Engine = "auto") -> list[Method]:
    """Return bicubic and the model of every training stage, on the CPU: GPUs run them in half precision.

    Args:
        models: folder of the models.
        engine: see `cabm.upscaling.engine_choice.choose_runner`.
    """
    methods = [Method("bicubic")]
    for name in TRAINING_STAGES:
        loaded = load_model(models / name)
        methods.append(Method(name, loaded, choose_runner(loaded.model, engine=engine, device="cpu")))
    return methods


def control_methods(cabm: Method, observations: Observations) -> list[Method]:
    """Return the CABM model with the two control tables of `cabm.tables.controls`.

    Args:
        cabm: the method with the learned table.
        observations: the observations that the table was built from.
    """
    loaded = cabm.loaded
    assert loaded is not None and loaded.table is not None
    tables = (shuffled(loaded.table, seed=0), constant(loaded.table, observations.scores))
    return [
        Method(name, replace(loaded, table=table), cabm.chosen)
        for name, table in zip(CONTROLS, tables, strict=True)
    ]


def _bicubic(image: np.ndarray, scale: int) -> TiledResult:
    height, width = image.shape[:2]
    whole = plan(height, width, max(height, width), max(height, width))
    return TiledResult(upscale_bicubic(image, scale), whole, np.zeros(1), None)


def model_bitops(model: Backbone, result: TiledResult, convention: Convention) -> float:
    """Return the bit operations of one upscaled image; see `cabm.tables.cost.bitops`.

    Args:
        model: the backbone that upscaled it.
        result: the image and the bits of its tiles.
        convention: "tile" (overlaps counted) or "image".
    """
    return bitops(
        model.layers,
        np.full(model.num_adaptive, PAMS_BITS) if model.precision.kind == "pams" else result.bits,
        result.plan,
        convention=convention,
        weight_bits=model.precision.weight_bits,
        computed=result.work if convention == "tile" else 1 - result.bypassed,
    )


def compare(
    methods: list[Method], sets: Mapping[str, PackedStore], settings: EvaluateSettings
) -> Iterator[tuple[str, str, str, list[ImageResult]]]:
    """Yield (protocol, test set, method, results), first in tiles, then of whole images."""
    protocols = [("tiles", None)]
    if settings.whole_image:
        protocols.append(("whole", settings.max_whole_pixels))
    for protocol, limit in protocols:
        for set_name, store in sets.items():
            for method in methods:
                upscale = method.upscale(settings, store.scale, protocol == "whole")
                results = list(evaluate_store(store, upscale, max_pixels=limit))
                if results:
                    yield protocol, set_name, method.name, results


def summarise(method: Method, results: list[ImageResult]) -> dict[str, Any]:
    """Return the means over a test set, with the bit operations per image in 10^12 by both conventions."""
    row = mean_results(results)
    if method.loaded is None:
        return row
    for convention in get_args(Convention):
        total = 0.0
        for image in results:
            total += model_bitops(method.loaded.model, image.result, convention)
        row[f"bitops_{convention}_T"] = total / len(results) / 1e12
    return row


def image_rows(
    protocol: str, set_name: str, method: str, results: list[ImageResult]
) -> list[dict[str, Any]]:
    """Return one row per image, for the CSV file."""
    return [
        {
            "protocol": protocol,
            "set": set_name,
            "method": method,
            "image": image.name,
            "psnr": round(image.psnr, 4),
            "ssim": round(image.ssim, 5),
            "fab": "" if image.fab is None else round(image.fab, 4),
            "bypassed": round(image.bypassed, 4),
            "tiles": len(image.result.plan),
            "seconds": round(image.seconds, 3),
        }
        for image in results
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows that have the same keys as CSV."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def protocol_description(settings: EvaluateSettings, scale: int) -> dict[str, Any]:
    """Describe how the numbers were measured, for the metrics file."""
    return {
        "color": "Y of YCbCr (BT.601, 65.738 129.057 25.064 over 256, plus 16), SR rounded to 8 bits",
        "shave": scale,
        "ssim": "Gaussian window of 11x11, sigma 1.5, only where it fits, mean",
        "tiles": f"LR tiles of {settings.tile}, stride {settings.stride}, blended where they overlap",
        "whole": "the image as a single tile; its edge score decides the bits",
        "fab": "mean bits over the adaptive layers and the tiles that enter the network",
        "bitops": "sum of MACs x weight bits x activation bits per image, in 10^12; tile: overlaps counted",
    }
