"""The training stages: steps 1, 2, 3 and 5 of the method."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cabm import __version__
from cabm.checkpoints.model_directory import load_model, save_model
from cabm.files import write_json
from cabm.models import Backbone
from cabm.pipeline.building import Built, Recipe, build, calibrate_clip_values
from cabm.pipeline.registering import register
from cabm.pipeline.resume_states import remove_old_states
from cabm.pipeline.stage import Stage
from cabm.project.sections import TrainingSettings
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edge_score
from cabm.training.loop import TrainingPlan, train
from cabm.training.losses import LossWeights, Objective
from cabm.training.recording import ProgressBar, Recorder, write_curves
from cabm.training.validation import Validation


def full_precision(stage: Stage) -> None:
    """Step 1: train the backbone in float."""
    train_model(stage, Recipe("float"))


def pams(stage: Stage) -> None:
    """Step 2: fine-tune at 8 bits with learned clip values, with the float model as the teacher."""
    float_model = stage.models / "full_precision"
    train_model(stage, Recipe("pams", start=float_model, teacher=float_model))


def cadyq(stage: Stage) -> None:
    """Step 3: train bit selectors, with the 8-bit model as the teacher."""
    eight_bits, settings = stage.models / "pams", stage.params.cadyq
    recipe = Recipe(
        "cadyq",
        start=eight_bits,
        teacher=eight_bits,
        w_bit=settings.w_bit,
        w_bit_per_step=settings.w_bit_per_1000 / 1000,
    )
    train_model(stage, recipe)


def cabm(stage: Stage) -> None:
    """Step 5: fine-tune step 3's model with the table's bits, with the 8-bit model as the teacher."""
    table = EdgeToBitTable.load(stage.params.cabm.table_from or stage.tables / "edge_to_bit.json")
    recipe = Recipe("cabm", start=stage.models / "cadyq", teacher=stage.models / "pams", table=table)
    measured = train_model(stage, recipe)
    if stage.group.leads:
        register(stage, measured)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        recorder: holds the training curve and the duration.
        measured: quality of the final weights on the validation images.
        resume_file: the resume state, which is not needed any more.
    """

    recorder: Recorder
    measured: dict[str, float]
    resume_file: Path


def train_model(stage: Stage, recipe: Recipe) -> dict[str, float]:
    """Build, calibrate, train and write the stage's model; return its quality on the validation images."""
    built = build(stage, recipe)
    calibrated = calibrate_clip_values(stage, built)
    trained = fit(stage, built)
    if stage.group.leads:
        write(stage, built, calibrated, trained)
    return trained.measured


def fit(stage: Stage, built: Built) -> Trained:
    """Train a built model in place, or resume its training.

    Raises:
        InputError: processes of the group have different params, data or weights.
        TrainingDiverged: a loss or a weight is not finite.
        PeerLost: another process of the group ended or does not answer.
    """
    settings: TrainingSettings = stage.settings()
    params, group, table = stage.params, stage.group, built.recipe.table
    autocast = params.runtime.autocast()
    resume_file = stage.resume_file(built.inputs)
    group.require_same(f"{stage.name} {resume_file.parent.name}", "stage, params, data or weights")
    if group.leads:
        remove_old_states(resume_file)
    validation = Validation(stage.store("validation"), built.model, table, params.evaluate, autocast, group)
    recorder = Recorder(stage.tracker, params.tracking.log_every, settings, validation)
    plan = TrainingPlan(
        steps=settings.steps,
        rates=_rates(settings),
        schedule=settings.schedule,
        ema_decay=settings.ema_decay,
        autocast=autocast,
        checkpoint_seconds=params.runtime.checkpoint_seconds,
    )
    objective = Objective(
        _loss_weights(settings, built.recipe, built.model),
        teacher=built.teacher,
        bits=None if table is None else partial(table_bits, table),
        contrast_limit=None if table is None else table.contrast_limit,
        shares=group.size,
    )
    with ProgressBar(stage.name, settings.steps, settings.batch_size, shown=group.leads) as bar:
        train(
            built.model,
            objective,
            built.make_sampler(rank=group.rank, world=group.size),
            plan,
            callbacks=(recorder, bar),
            resume_file=resume_file,
            history=recorder.history,
            group=group,
        )
    return Trained(recorder, validation.measure(built.model.state_dict()), resume_file)


def write(stage: Stage, built: Built, calibrated: dict[str, list[float]], trained: Trained) -> None:
    """Write and record the model, its curve, metrics and duration, and delete the resume state."""
    settings: TrainingSettings = stage.settings()
    name, table, measured = stage.name, built.recipe.table, trained.measured
    provenance = {"stage": name, "version": __version__, "steps": settings.steps, "inputs": built.inputs}
    provenance |= {"validation": measured, "settings": settings.model_dump(mode="json")}
    save_model(stage.models / name, built.model, table=table, provenance=provenance)
    write_curves(stage.curves / f"{name}.csv", trained.recorder.history)
    metrics: dict[str, dict[str, float]] = {"validation": measured}
    if alphas := [alpha for widths in calibrated.values() for alpha in widths]:
        metrics["calibrated_alpha"] = {"smallest": min(alphas), "largest": max(alphas)}
    write_json(stage.metrics / f"{name}.json", metrics)
    write_json(stage.timing / f"{name}.json", trained.recorder.timing())
    stage.tracker.metrics({f"final/{key}": value for key, value in measured.items()}, settings.steps)
    stage.tracker.tags({"weights.sha256": load_model(stage.models / name).config.weights_sha256})
    if table is not None:
        stage.tracker.dict("edge_to_bit", table.describe())
    trained.resume_file.unlink(missing_ok=True)


def table_bits(table: EdgeToBitTable, low_resolution: Tensor) -> Tensor:
    """Return the bits (B,L) of training patches (B,3,h,w) in 0..255; none of them bypasses the network."""
    bits = torch.from_numpy(table.lookup(edge_score(low_resolution.cpu().numpy())))
    return bits.to(low_resolution.device)


def _rates(settings: TrainingSettings) -> dict[str, float]:
    """Return the learning rate of each parameter group; those that the model lacks are not used."""
    return {
        "weights": settings.learning_rate,
        "alpha": getattr(settings, "alpha_learning_rate", 0.0),
        "selector": getattr(settings, "selector_learning_rate", 0.0),
    }


def _loss_weights(settings: TrainingSettings, recipe: Recipe, model: Backbone) -> LossWeights:
    border = model.tail_border if settings.collapse_tail and model.tail_border is not None else 0
    return LossWeights(
        output=getattr(settings, "kd_output", 0.0),
        feature=getattr(settings, "kd_feature", 0.0),
        blocks=getattr(settings, "kd_blocks", 0.0),
        bits=recipe.w_bit,
        bits_per_step=recipe.w_bit_per_step,
        border=border,
    )
