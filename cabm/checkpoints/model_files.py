"""The files of a model directory: their names, ``config.json``, the weights' checksum, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from cabm.errors import InputError, describe
from cabm.files import read_json, sha256_file
from cabm.models.facts import MAX_OPTION, ModelFacts
from cabm.quant.kinds import Precision
from cabm.tables.table import EdgeToBitTable

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
TABLE_FILE = "edge_to_bit.json"
FORMAT = "cabm.model/1"


class PrecisionConfig(BaseModel, extra="forbid", strict=True):
    """The ``precision`` part of config.json."""

    kind: Literal["float", "pams", "cadyq", "cabm"]
    search_space: list[Annotated[int, Field(ge=2, le=8)]]
    weight_bits: Annotated[int, Field(ge=2, le=8)] | Literal["same"]
    quantize_ends: bool = False
    skip: Literal[8, "quantized"] = "quantized"
    after_relu: Literal["unsigned", "symmetric"] = "symmetric"
    weight_granularity: Literal["channel", "tensor"] = "tensor"

    def build(self) -> Precision:
        """Return the precision that these fields describe."""
        return Precision(**self.model_dump() | {"search_space": tuple(self.search_space)})


class ModelConfig(BaseModel, extra="forbid", strict=True):
    """config.json of a model directory."""

    format: Literal["cabm.model/1"]
    backbone: str
    scale: Annotated[int, Field(ge=2, le=4)]
    options: dict[str, bool | Annotated[int | float, Field(ge=0, le=MAX_OPTION)]]
    precision: PrecisionConfig
    weights_sha256: str
    provenance: dict[str, Any] = {}
    """Where the model comes from: stage, params, data, versions. A note for readers; no code uses it."""


def read_config(directory: Path) -> ModelConfig:
    """Read and check the config.json of a model directory.

    Raises:
        InputError: there is no such directory or file, or something in it is missing or wrong.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    path = directory / CONFIG_FILE
    try:
        return ModelConfig.model_validate(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path}: {describe(error)}") from None


def check_weights(path: Path, sha256: str) -> None:
    """Compare the weights with the checksum in config.json.

    Raises:
        InputError: there is no such file, it cannot be read, or it is another one.
    """
    try:
        found = sha256_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; the model directory is incomplete") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if found != sha256:
        raise InputError(
            f"{path}: SHA-256 {found[:12]}, but {CONFIG_FILE} says {sha256[:12]}; copy the model again"
        )


def read_table(directory: Path, facts: ModelFacts) -> EdgeToBitTable | None:
    """Return a model's table; None for kinds other than cabm.

    Raises:
        InputError: the table is missing or damaged, or belongs to another model.
    """
    if facts.precision.kind != "cabm":
        return None
    table = EdgeToBitTable.load(directory / TABLE_FILE)
    table.check(**facts.table_fit)
    return table
