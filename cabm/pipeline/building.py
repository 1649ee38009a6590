"""The model of a training stage before its first step: built, loaded and calibrated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import LoadedModel, load_model
from cabm.data.patches import PatchSampler
from cabm.data.prepare import load_positions
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.pipeline.stage import Stage
from cabm.project.sections import QuantizationSettings, QuantizedTrainingSettings, TrainingSettings
from cabm.quant import Kind, Precision
from cabm.tables.table import EdgeToBitTable
from cabm.training.calibration import calibrate


@dataclass(frozen=True)
class Recipe:
    """The differences between the training stages.

    Attributes:
        kind: precision of the model.
        start: model directory to start from, unless params name another; None: train from scratch.
        teacher: model directory of the teacher, unless params name another.
        w_bit: weight of the bit loss at the first step.
        w_bit_per_step: increase of that weight per step.
        table: table of the model's bits.
    """

    kind: Kind
    start: Path | None = None
    teacher: Path | None = None
    w_bit: float = 0.0
    w_bit_per_step: float = 0.0
    table: EdgeToBitTable | None = None


@dataclass(frozen=True)
class Built:
    """A model that is ready to be calibrated and trained.

    Attributes:
        recipe: the recipe it was built by.
        model: on the device of the training.
        teacher: on the same device; None if the stage has none.
        uncalibrated: names of the clip values to calibrate.
        inputs: everything besides params that the result depends on: hashes, precision and table.
        make_sampler: makes a sampler of whole batches, or with ``rank`` and ``world`` of shares.
    """

    recipe: Recipe
    model: Backbone
    teacher: Backbone | None
    uncalibrated: frozenset[str]
    inputs: dict[str, Any]
    make_sampler: Callable[..., PatchSampler]


def build(stage: Stage, recipe: Recipe) -> Built:
    """Build the stage's model, load its start and its teacher, and open the training images.

    Sets PyTorch's seed to the stage's.

    Raises:
        InputError: params, images, start, teacher or table are wrong or do not fit the model.
    """
    settings: TrainingSettings = stage.settings()
    params, device = stage.params, stage.params.runtime.torch_device()
    torch.manual_seed(settings.seed)
    store = stage.store("train")
    make_sampler = partial(
        PatchSampler,
        store,
        batch_size=settings.batch_size,
        lr_patch=settings.patch,
        seed=settings.seed,
        positions=load_positions(stage.data, params.prepare, settings.patch),
    )
    make_sampler(rank=stage.group.rank, world=stage.group.size)  # refuses bad settings at once
    precision = _precision(params.quantization, recipe.kind)
    sampling = params.prepare.sampling.model_dump(mode="json")
    inputs: dict[str, Any] = {"train": store.sha256, "precision": asdict(precision), "sampling": sampling}

    start = _load(settings.init_from, recipe.start)
    quantized = isinstance(settings, QuantizedTrainingSettings)
    teacher = _load(settings.teacher_from, recipe.teacher) if quantized else None
    model = build_model(params.model.name, params.model.scale, precision, params.model.chosen_options())
    uncalibrated: frozenset[str] = frozenset()
    if start is not None:
        inputs["start"] = start.config.weights_sha256
        uncalibrated = _start_from(start.model, model, recalibrate=getattr(settings, "recalibrate", False))
    if recipe.table is not None:
        recipe.table.check(**model.facts.table_fit)
        # the constant keeps the fingerprint of tables from when whole tiles could be bypassed by score
        inputs["table"] = recipe.table.describe() | {"bypassed_below": 0.0}
    if teacher is not None:
        inputs["teacher"] = teacher.config.weights_sha256
    return Built(
        recipe,
        model.to(device, memory_format=torch.channels_last),
        None if teacher is None else teacher.model.to(device, memory_format=torch.channels_last),
        uncalibrated,
        inputs,
        make_sampler,
    )


def calibrate_clip_values(stage: Stage, built: Built) -> dict[str, list[float]]:
    """Calibrate the clip values that the start does not set; return them by name, one per width."""
    settings = stage.settings()
    if not isinstance(settings, QuantizedTrainingSettings) or not built.uncalibrated:
        return {}
    return calibrate(
        built.model,
        built.make_sampler(),  # whole batches, so that all processes find the same values
        settings.calibration_batches,
        only=set(built.uncalibrated),
        method=settings.calibration,
    )


def _load(named: str | None, default: Path | None) -> LoadedModel | None:
    if named is not None:
        return load_model(find_model(named))
    return None if default is None else load_model(default)


def _start_from(start: Backbone, model: Backbone, *, recalibrate: bool) -> frozenset[str]:
    """Load the weights of ``start``, and return the names of the clip values to calibrate."""
    uncalibrated = set(transfer_weights(start, model))
    if recalibrate and start.precision.kind != model.precision.kind:
        adaptive = (name for name, module in model.named_modules() if hasattr(module, "widths"))
        uncalibrated |= {f"{name}.alpha" for name in adaptive}
    return frozenset(uncalibrated)


def _precision(settings: QuantizationSettings, kind: Kind) -> Precision:
    """Return the precision of a model of a kind.

    Settings that the kind does not use keep their defaults. dvc.yaml does not list them for its stage, so
    that a change of the search space keeps the float and the 8-bit model.
    """
    match kind:
        case "float":
            return Precision(kind)
        case "pams":
            return Precision(kind, **settings.model_dump(exclude={"search_space"}))
    return Precision(kind, **settings.model_dump())
