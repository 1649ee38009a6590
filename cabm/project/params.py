"""params.yaml as typed sections; unknown keys and illegal values are errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import model_validator

from cabm.data.sources import PrepareSettings
from cabm.project.runtime import RuntimeSettings
from cabm.project.sections import (
    CabmSettings,
    CadyqSettings,
    EdgeToBitSettings,
    EvaluateSettings,
    ModelSettings,
    QuantizationSettings,
    QuantizedTrainingSettings,
    Section,
    ServingSettings,
    TrackingSettings,
    TrainingSettings,
)

RENAMED = {
    "edge_to_bit.patch": "edge_to_bit.tile",
    "edge_to_bit.step": "edge_to_bit.stride",
    "evaluate.patch": "evaluate.tile",
    "evaluate.step": "evaluate.stride",
}
"""Keys of earlier versions, and their names today."""


class Params(Section):
    """params.yaml: one section per stage, and four that several stages share."""

    model: ModelSettings = ModelSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    tracking: TrackingSettings = TrackingSettings()
    serving: ServingSettings = ServingSettings()
    prepare: PrepareSettings
    full_precision: TrainingSettings
    pams: QuantizedTrainingSettings
    cadyq: CadyqSettings
    edge_to_bit: EdgeToBitSettings = EdgeToBitSettings()
    cabm: CabmSettings
    evaluate: EvaluateSettings = EvaluateSettings()

    @model_validator(mode="after")
    def _strides_fit_tiles(self) -> Params:
        for name in ("edge_to_bit", "evaluate"):
            section = getattr(self, name)
            if section.stride > section.tile:
                raise ValueError(
                    f"{name}.stride {section.stride} is larger than {name}.tile {section.tile}"
                )
        return self


def load_params(path: str | Path = "params.yaml") -> Params:
    """Read and check params.yaml.

    Raises:
        InputError: the file is missing, is not YAML, or has an unknown key or an illegal value.
    """
    from cabm.project.yaml_file import read_yaml  # the settings are of use without PyYAML

    return read_yaml(path, Params, renamed=RENAMED)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values as one level: ``{"a": {"b": 1}}`` as ``{"a.b": 1}``. Empty mappings stay."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def flat_texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested values as ``section.name`` -> text; lists, numbers and booleans as JSON."""
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in flatten(values).items()
    }
