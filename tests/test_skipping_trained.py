"""The method with 0 bits, trained on a photograph.

Takes some minutes: pytest -m slow tests/test_skipping_trained.py
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor

from cabm.engine import compile_model, supports
from cabm.evaluation.quality import psnr_y
from cabm.imaging.resize import downscale
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.pipeline.train import TableBits
from cabm.project.schedule import Schedule
from cabm.quant import Kind, Precision
from cabm.tables.cost import skipped_share
from cabm.tables.table import EdgeToBitTable, build_table
from cabm.tiling.edges import edge_score
from cabm.training.loop import TrainingPlan, calibrate, train
from cabm.training.losses import LossWeights, Objective
from cabm.upscaling.runners import ModelRunner

SPACE, SCALE, PATCH, BATCH = (0, 4, 6, 8), 2, 20, 8
OPTIONS = {"num_features": 16, "num_blocks": 4, "replicate_tail": True}


class Photograph:
    """Patches of one photograph, a pure function of the step."""

    def __init__(self) -> None:
        self.high = np.ascontiguousarray(data.astronaut()[:384, :384])
        self.low = downscale(self.high, SCALE)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        places = np.random.default_rng(step).integers(0, self.low.shape[0] - PATCH, (BATCH, 2))
        low = [self.low[y : y + PATCH, x : x + PATCH] for y, x in places]
        size = SCALE * PATCH
        high = [self.high[SCALE * y :, SCALE * x :][:size, :size] for y, x in places]
        return tensor(np.stack(low)), tensor(np.stack(high))

    def tiles(self) -> Tensor:
        """Return the whole photograph in tiles of 24."""
        side = self.low.shape[0] // 24
        cut = self.low.reshape(side, 24, side, 24, 3).transpose(0, 2, 1, 3, 4)
        return tensor(cut.reshape(-1, 24, 24, 3))


def tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


class Course:
    """The parts of every step's loss."""

    def __init__(self) -> None:
        self.parts: list[Mapping[str, float]] = []

    def __call__(self, progress) -> None:
        self.parts.append(dict(progress.parts))

    def mean(self, name: str, steps: slice) -> float:
        return float(np.mean([parts[name] for parts in self.parts[steps]]))


def step(
    kind: Kind,
    photograph: Photograph,
    start: Backbone | None,
    teacher: Backbone | None,
    *,
    steps: int,
    bits: TableBits | None = None,
    w_bit: float = 0.0,
) -> tuple[Backbone, Course]:
    torch.manual_seed(0)
    model = build_model("edsr", SCALE, Precision(kind, SPACE), OPTIONS)
    if start is not None:
        unset = set(transfer_weights(start, model))
        if kind == "cadyq":
            unset = {name for name in model.state_dict() if name.endswith("alpha")}
        if unset:
            calibrate(model, photograph, 4, only=unset, method="error")
    weights = LossWeights() if teacher is None else LossWeights(1000, 100, w_bit)
    rates = {"weights": 1e-3 if kind == "float" else 2e-4, "alpha": 1e-2, "selector": 3e-4}
    course = Course()
    plan = TrainingPlan(steps, rates, Schedule(kind="cosine", warmup=0.05, final=0.02))
    train(model, Objective(weights, teacher, bits), photograph, plan, callbacks=(course,))
    return model, course


def psnr(model: Backbone, photograph: Photograph, bits: Tensor | None = None) -> float:
    x = tensor(photograph.low[None])
    sr, _ = ModelRunner(model)(x, bits)
    image = sr[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
    return psnr_y(image, photograph.high, SCALE)


@pytest.mark.slow
def test_a_dear_bit_makes_selectors_skip_what_adds_least():
    """From float to CABM on both engines; the bit loss is dear, so some blocks are skipped, and not all."""
    photograph = Photograph()
    plain, _ = step("float", photograph, None, None, steps=300)
    eight, _ = step("pams", photograph, plain, plain, steps=50)
    cadyq, course = step("cadyq", photograph, eight, eight, steps=200, w_bit=2e-3)

    assert course.parts[0]["skipped"] == 0 and course.parts[0]["fab"] == 8
    assert course.mean("skipped", slice(-50, None)) > course.mean("skipped", slice(0, 50))
    tiles = photograph.tiles()
    _, chosen = ModelRunner(cadyq)(tiles, None)
    share = skipped_share(chosen.numpy(), np.zeros(len(tiles), bool))
    assert 0.02 < share < 0.9, f"{share:.0%} of the layers are skipped"
    assert psnr(cadyq, photograph) > psnr(eight, photograph) - 0.5

    table = build_table(
        edge_score(tiles).numpy(),
        chosen.numpy(),
        backbone="edsr",
        scale=SCALE,
        search_space=SPACE,
        layers=cadyq.layer_names,
        tile=24,
        stride=24,
    )
    assert (table.rows == 0).any()
    cabm, course = step("cabm", photograph, cadyq, eight, steps=60, bits=TableBits(table))
    table.check(**cabm.table_fit)
    assert course.mean("skipped", slice(None)) > 0
    assert course.mean("l1", slice(-20, None)) < 1.1 * course.mean("l1", slice(0, 20))
    agree_on_integers(cabm, table, tiles)


def agree_on_integers(cabm: Backbone, table: EdgeToBitTable, tiles: Tensor) -> None:
    if supports(cabm) is not None:
        return
    bits = torch.from_numpy(table.lookup(edge_score(tiles).numpy()))
    wanted, _ = ModelRunner(cabm)(tiles, bits)
    found = compile_model(cabm, float_dtype=torch.float32).run(tiles, bits, dtype=torch.float32)
    assert float((found - wanted).abs().mean()) < 0.05
