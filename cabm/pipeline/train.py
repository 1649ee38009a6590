"""The training steps of the method: what each starts from, learns from and minimises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabm import __version__
from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import LoadedModel, load_model, save_model
from cabm.data.patches import PatchSampler
from cabm.data.prepare import load_positions
from cabm.files import write_json
from cabm.models import Backbone, build_model
from cabm.models.transfer import transfer_weights
from cabm.pipeline.resume_states import remove_old_states
from cabm.pipeline.stage import Stage
from cabm.project.sections import QuantizationSettings, QuantizedTrainingSettings, TrainingSettings
from cabm.quant import Kind, Precision
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edge_score
from cabm.tracking.registry import Quality, log_and_register
from cabm.training.calibration import calibrate
from cabm.training.loop import TrainingPlan, train
from cabm.training.losses import LossWeights, Objective
from cabm.training.recording import ProgressBar, Recorder, write_curves
from cabm.training.validation import Validation


def full_precision(stage: Stage) -> None:
    """Step 1: train the backbone in float."""
    _run_step(stage, "float", previous=None, teacher=None, extra=LossWeights())


def pams(stage: Stage) -> None:
    """Step 2: fine-tune at 8 bits with learned clip values, taught by the float model."""
    own = stage.models / "full_precision"
    _run_step(stage, "pams", previous=own, teacher=own, extra=LossWeights())


def cadyq(stage: Stage) -> None:
    """Step 3: learn bit selectors, taught by the 8-bit model."""
    own, settings = stage.models / "pams", stage.params.cadyq
    extra = LossWeights(bits=settings.w_bit, bits_per_step=settings.w_bit_per_1000 / 1000)
    _run_step(stage, "cadyq", previous=own, teacher=own, extra=extra)


def cabm(stage: Stage) -> None:
    """Step 5: fine-tune with the tables' bits, from step 3's weights, taught by the 8-bit model."""
    table_from = stage.params.cabm.table_from
    table = EdgeToBitTable.load(table_from or stage.tables / "edge_to_bit.json")
    measured = _run_step(
        stage,
        "cabm",
        previous=stage.models / "cadyq",
        teacher=stage.models / "pams",
        extra=LossWeights(),
        table=table,
    )
    if stage.group.leads:
        _register(stage, measured)


def _register(stage: Stage, measured: Mapping[str, float]) -> None:
    """Offer the finished model to the registry, where it competes with the champion of its kind."""
    params, settings = stage.params, stage.params.evaluate
    protocol = f"tiles of {settings.tile}, {settings.stride} apart"
    registered = log_and_register(
        stage.tracker,
        stage.models / stage.name,
        name=f"cabm-{params.model.name}-x{params.model.scale}",
        quality=Quality(
            psnr=measured["psnr"],
            fab=measured.get("fab", math.nan),  # there is none where every tile is bypassed
            measured_on=f"validation images {stage.store('validation').sha256[:16]}, {protocol}",
        ),
        settings=params.serving,
    )
    if registered is not None:
        stage.tracker.tags(
            {"registered": f"{registered.name} version {registered.version}", "champion": registered.reason}
        )


def _run_step(
    stage: Stage,
    kind: Kind,
    *,
    previous: Path | None,
    teacher: Path | None,
    extra: LossWeights,
    table: EdgeToBitTable | None = None,
) -> dict[str, float]:
    """Train one step, write its outs, and return what the validation images measured."""
    settings: TrainingSettings = stage.settings()
    params = stage.params
    device = params.runtime.torch_device()
    group = stage.group
    store = stage.store("train")
    make_sampler = partial(
        PatchSampler,
        store,
        batch_size=settings.batch_size,
        lr_patch=settings.patch,
        seed=settings.seed,
        positions=load_positions(stage.data, params.prepare, settings.patch),
    )
    sampler = make_sampler(rank=group.rank, world=group.size)
    sampling = params.prepare.sampling.model_dump(mode="json")
    precision = _precision(params.quantization, kind)
    inputs: dict[str, Any] = {"train": store.sha256, "precision": asdict(precision), "sampling": sampling}

    quantized = settings if isinstance(settings, QuantizedTrainingSettings) else None
    start = _given(settings.init_from, previous)
    taught_by = _given(quantized.teacher_from, teacher) if quantized else None
    model = build_model(params.model.name, params.model.scale, precision, params.model.chosen_options())
    uncalibrated: list[str] = []
    if start is not None:
        inputs["start"] = start.config.weights_sha256
        uncalibrated = transfer_weights(start.model, model)
    if table is not None:
        table.check(**model.table_fit)
        # the constant keeps the fingerprint of tables from when whole tiles could be bypassed by score
        inputs["table"] = table.describe() | {"bypassed_below": 0.0}
    model = model.to(device, memory_format=torch.channels_last)
    unset = set(uncalibrated)
    if getattr(settings, "recalibrate", False) and start is not None and start.model.precision.kind != kind:
        unset |= {f"{name}.alpha" for name, module in model.named_modules() if hasattr(module, "widths")}
    calibrated = {}
    if quantized is not None and unset:
        batches, method = quantized.calibration_batches, quantized.calibration
        # on whole batches, in every process: the clip values are those of one process
        calibrated = calibrate(model, make_sampler(), batches, only=unset, method=method)
    if taught_by is not None:
        inputs["teacher"] = taught_by.config.weights_sha256

    objective = Objective(
        _loss_weights(settings, quantized, model, extra),
        teacher=None
        if taught_by is None
        else taught_by.model.to(device, memory_format=torch.channels_last),
        bits=None if table is None else partial(table_bits, table),
        shares=group.size,
    )
    autocast = params.runtime.autocast()
    plan = TrainingPlan(
        steps=settings.steps,
        rates=_rates(settings),
        schedule=settings.schedule,
        ema_decay=settings.ema_decay,
        autocast=autocast,
        checkpoint_seconds=params.runtime.checkpoint_seconds,
    )
    resume_file = stage.resume_file(inputs)
    group.require_same(f"{stage.name} {resume_file.parent.name}", "stage, params, data or weights")
    if group.leads:
        remove_old_states(resume_file)
    validation = Validation(stage.store("validation"), model, table, params.evaluate, autocast, group)
    recorder = Recorder(stage.tracker, params.tracking.log_every, settings, validation)
    with ProgressBar(stage.name, settings.steps, settings.batch_size, shown=group.leads) as bar:
        train(
            model,
            objective,
            sampler,
            plan,
            callbacks=(recorder, bar),
            resume_file=resume_file,
            history=recorder.history,
            group=group,
        )

    measured = validation.measure(model.state_dict())
    if not group.leads:
        return measured
    described = {"stage": stage.name, "version": __version__, "steps": settings.steps, "inputs": inputs}
    described |= {"validation": measured, "settings": settings.model_dump(mode="json")}
    save_model(stage.models / stage.name, model, table=table, provenance=described)
    write_curves(stage.curves / f"{stage.name}.csv", recorder.history)
    write_json(stage.metrics / f"{stage.name}.json", {"validation": measured} | _calibration(calibrated))
    write_json(stage.timing / f"{stage.name}.json", recorder.timing())
    stage.tracker.metrics({f"final/{name}": value for name, value in measured.items()}, settings.steps)
    stage.tracker.tags({"weights.sha256": load_model(stage.models / stage.name).config.weights_sha256})
    if table is not None:
        stage.tracker.dict("edge_to_bit", table.describe())
    resume_file.unlink(missing_ok=True)
    return measured


def _given(named: str | None, own: Path | None) -> LoadedModel | None:
    if named is not None:
        return load_model(find_model(named))
    return None if own is None else load_model(own)


def _precision(settings: QuantizationSettings, kind: Kind) -> Precision:
    """Return what a step computes in.

    Settings that the step does not use stay at their defaults, and dvc.yaml does not list them for it:
    another search space keeps the float and the 8-bit model.
    """
    match kind:
        case "float":
            return Precision(kind)
        case "pams":
            return Precision(kind, **settings.model_dump(exclude={"search_space"}))
    return Precision(kind, **settings.model_dump())


def table_bits(table: EdgeToBitTable, low_resolution: Tensor) -> Tensor:
    """Return the bits (B,L) of training patches (B,3,h,w) in 0..255; smooth ones are not bypassed."""
    bits = torch.from_numpy(table.lookup(edge_score(low_resolution.cpu())))
    return bits.to(low_resolution.device)


def _rates(settings: TrainingSettings) -> dict[str, float]:
    """Learning rate by parameter group; a group that the model lacks is not asked for."""
    return {
        "weights": settings.learning_rate,
        "alpha": getattr(settings, "alpha_learning_rate", 0.0),
        "selector": getattr(settings, "selector_learning_rate", 0.0),
    }


def _loss_weights(
    settings: TrainingSettings,
    quantized: QuantizedTrainingSettings | None,
    model: Backbone,
    extra: LossWeights,
) -> LossWeights:
    border = model.tail_border if settings.collapse_tail and model.tail_border is not None else 0
    return LossWeights(
        feature=0.0 if quantized is None else quantized.kd_feature,
        blocks=0.0 if quantized is None else quantized.kd_blocks,
        bits=extra.bits,
        bits_per_step=extra.bits_per_step,
        border=border,
    )


def _calibration(alphas: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    values = [alpha for widths in alphas.values() for alpha in widths]
    return {"calibrated_alpha": {"smallest": min(values), "largest": max(values)}} if values else {}
