"""Models as directories: ``model.safetensors``, ``config.json`` and, for CABM, ``edge_to_bit.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cabm.checkpoints.packed import pack_state, unpack_state
from cabm.errors import InputError, describe
from cabm.files import atomic_directory, read_json, sha256_file, write_json
from cabm.models import BACKBONES, Backbone, build_model
from cabm.models.registry import MAX_OPTION
from cabm.quant import Precision
from cabm.tables.table import EdgeToBitTable

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TABLE_FILE = "edge_to_bit.json"
FORMAT = "cabm.model/1"


def _has_width(search_space: list[int]) -> list[int]:
    if not any(search_space):
        raise ValueError("0 alone is no search space")
    return search_space


class PrecisionConfig(BaseModel):
    """The ``precision`` part of config.json."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["float", "pams", "cadyq", "cabm"]
    search_space: Annotated[
        list[Literal[0] | Annotated[int, Field(ge=2, le=8)]],
        Field(min_length=1, max_length=8),
        AfterValidator(_has_width),
    ]
    weight_bits: Annotated[int, Field(ge=2, le=8)] | Literal["same"]
    quantize_ends: bool = False

    def build(self) -> Precision:
        """Return the precision that it describes."""
        return Precision(self.kind, tuple(self.search_space), self.weight_bits, self.quantize_ends)


class ModelConfig(BaseModel):
    """config.json of a model directory."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["cabm.model/1"]
    backbone: str
    scale: Annotated[int, Field(ge=2, le=4)]
    options: dict[str, bool | Annotated[int | float, Field(ge=0, le=MAX_OPTION)]]
    precision: PrecisionConfig
    weights_sha256: str
    provenance: dict[str, Any] = {}
    """Where the model comes from: stage, params, data, versions. For people; nothing depends on it."""


@dataclass(frozen=True)
class LoadedModel:
    """What a model directory holds.

    Attributes:
        model: the backbone with its weights, in evaluation mode.
        table: its edge-to-bit table; None unless the model is of the cabm kind.
        config: its description.
        directory: where it was read from.
    """

    model: Backbone
    table: EdgeToBitTable | None
    config: ModelConfig
    directory: Path


def save_model(
    directory: str | Path,
    model: Backbone,
    *,
    table: EdgeToBitTable | None = None,
    provenance: dict[str, Any] | None = None,
    half: bool = False,
    packed: bool = False,
) -> None:
    """Write a model directory, aside and renamed.

    Args:
        directory: replaced as a whole.
        model: the backbone.
        table: its edge-to-bit table; required for the cabm kind.
        provenance: JSON-ready facts on where it comes from.
        half: store float weights as float16, which halves the file.
        packed: store quantized weights as their int8 codes, which quarters it; they load as weights that
            quantize to the same codes.
    """
    precision = model.precision
    assert (table is not None) == (precision.kind == "cabm"), "a cabm model goes with a table"
    with atomic_directory(directory) as temporary:
        weights = temporary / WEIGHTS_FILE
        state = pack_state(model) if packed else model.state_dict()
        tensors = {name: _stored(tensor, half) for name, tensor in state.items()}
        weights.write_bytes(save(tensors))  # save_file makes it private, and does not name a full disk
        config = ModelConfig(
            format=FORMAT,
            backbone=model.name,
            scale=model.scale,
            options=model.options,
            precision=PrecisionConfig(
                kind=precision.kind,
                search_space=list(precision.search_space),
                weight_bits=precision.weight_bits,
                quantize_ends=precision.quantize_ends,
            ),
            weights_sha256=sha256_file(weights),
            provenance=provenance or {},
        )
        write_json(temporary / CONFIG_FILE, config.model_dump())
        if table is not None:
            table.save(temporary / TABLE_FILE)


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().contiguous().cpu()
    # clip values decide codes; they are few and stay exact
    return tensor.half() if half and tensor.is_floating_point() and tensor.dim() > 1 else tensor


def load_model(directory: str | Path) -> LoadedModel:
    """Read a model directory.

    Raises:
        InputError: a file is missing, damaged, or does not fit the others.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    config = read_config(directory)
    if config.backbone not in BACKBONES:
        raise InputError(
            f"{directory / CONFIG_FILE}: backbone {config.backbone!r} is not one of {', '.join(BACKBONES)}"
        )
    tensors = _read_weights(directory / WEIGHTS_FILE, config.weights_sha256)
    # shapes are compared before anything is allocated: options may ask for more than the file holds
    with torch.device("meta"):
        expected = _build(directory, config).state_dict()
    _check_tensors(directory / WEIGHTS_FILE, tensors, expected)
    model = _build(directory, config)
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    table = None
    if config.precision.kind == "cabm":
        table = EdgeToBitTable.load(directory / TABLE_FILE)
        table.check(**model.table_fit)
    return LoadedModel(model.eval(), table, config, directory)


def read_config(directory: Path) -> ModelConfig:
    """Read and check the config.json of a model directory."""
    path = directory / CONFIG_FILE
    try:
        return ModelConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from None


def _build(directory: Path, config: ModelConfig) -> Backbone:
    try:
        return build_model(config.backbone, config.scale, config.precision.build(), config.options)
    except InputError as error:
        raise InputError(f"{directory / CONFIG_FILE}: {error}") from None


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    try:
        found = sha256_file(path)
        if found != sha256:
            raise InputError(f"{path}: hash {found[:12]} is not the config's {sha256[:12]}; copy it again")
        return unpack_state(load_file(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model directory is incomplete") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None


def _check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise InputError(f"{path}: missing weights {missing[:5]}, unknown weights {unknown[:5]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name} has the shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path}: {name} has values that are not finite")
        if name.endswith(".alpha") and not bool((tensor > 0).all()):
            raise InputError(f"{path}: {name} is not positive")
