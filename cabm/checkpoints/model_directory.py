"""A model as a directory: ``model.safetensors``, ``config.json`` and, for CABM, ``edge_to_bit.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cabm.checkpoints.model_files import (
    CONFIG_FILE,
    FORMAT,
    TABLE_FILE,
    WEIGHTS_FILE,
    ModelConfig,
    PrecisionConfig,
    check_weights,
    read_config,
    read_table,
)
from cabm.checkpoints.packed import pack_state, unpack_state
from cabm.errors import InputError
from cabm.files import atomic_directory, sha256_file, write_json
from cabm.models import BACKBONES, Backbone, build_model
from cabm.tables.table import EdgeToBitTable


@dataclass(frozen=True)
class LoadedModel:
    """What a model directory holds.

    Attributes:
        model: the backbone with its weights, in evaluation mode.
        table: its edge-to-bit table; None unless the kind is cabm.
        config: the parsed config.json.
        directory: the directory itself.
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
    packed: bool = False,
) -> None:
    """Write a model directory; readers see the old directory or the new one, never a mixture.

    Args:
        directory: replaced as a whole.
        model: the backbone.
        table: its edge-to-bit table; required for the cabm kind, None for the others.
        provenance: JSON values that record where the model comes from.
        packed: store quantized weights as int8 codes, a quarter of the size. The loaded weights quantize
            to the same codes.

    Raises:
        InputError: ``packed``, and the weights have no single width; see `pack_state`.
    """
    precision = model.precision
    assert (table is not None) == (precision.kind == "cabm"), "a cabm model goes with a table"
    with atomic_directory(directory) as temporary:
        weights = temporary / WEIGHTS_FILE
        state = pack_state(model) if packed else model.state_dict()
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}
        # not save_file: its files are private, and its error on a full disk names no file
        weights.write_bytes(save(tensors))
        config = ModelConfig(
            format=FORMAT,
            backbone=model.name,
            scale=model.scale,
            options=model.options,
            precision=PrecisionConfig(**asdict(precision) | {"search_space": list(precision.search_space)}),
            weights_sha256=sha256_file(weights),
            provenance=provenance or {},
        )
        write_json(temporary / CONFIG_FILE, config.model_dump())
        if table is not None:
            table.save(temporary / TABLE_FILE)


def load_model(directory: str | Path) -> LoadedModel:
    """Read a model directory.

    Raises:
        InputError: a file is missing or damaged, or does not fit the others.
    """
    directory = Path(directory)
    config = read_config(directory)
    if config.backbone not in BACKBONES:
        raise InputError(
            f"{directory / CONFIG_FILE}: backbone {config.backbone!r} is not one of {', '.join(BACKBONES)}"
        )
    tensors = _read_weights(directory / WEIGHTS_FILE, config.weights_sha256)
    # compare shapes before allocating: a damaged config may describe a model of any size
    with torch.device("meta"):
        expected = _build(directory, config).state_dict()
    _check_tensors(directory / WEIGHTS_FILE, tensors, expected)
    model = _build(directory, config)
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()})
    table = read_table(directory, model.facts)
    return LoadedModel(model.eval(), table, config, directory)


def _build(directory: Path, config: ModelConfig) -> Backbone:
    try:
        return build_model(config.backbone, config.scale, config.precision.build(), config.options)
    except InputError as error:
        raise InputError(f"{directory / CONFIG_FILE}: {error}") from None


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    check_weights(path, sha256)
    try:
        return unpack_state(load_file(path))
    except InputError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged safetensors file ({error}); copy the model again") from None


def _check_tensors(path: Path, tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise InputError(f"{path}: missing weights {missing[:5]}, unknown weights {unknown[:5]}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"{path}: {name} has values that are not finite")
        if name.endswith(".alpha") and not bool((tensor > 0).all()):
            raise InputError(f"{path}: {name} is not positive")
