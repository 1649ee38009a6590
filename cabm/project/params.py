"""params.yaml as typed sections; whatever is not understood is refused."""

from __future__ import annotations

from pathlib import Path

from pydantic import (
    model_validator,
)

from cabm.data.sources import PrepareSettings
from cabm.project.sections import (
    CabmSettings,
    CadyqSettings,
    EdgeToBitSettings,
    EvaluateSettings,
    ModelSettings,
    QuantizationSettings,
    QuantizedTrainingSettings,
    RuntimeSettings,
    Section,
    ServingSettings,
    TrackingSettings,
    TrainingSettings,
)
from cabm.project.yaml_file import read_yaml

RENAMED = {
    "edge_to_bit.patch": "edge_to_bit.tile",
    "edge_to_bit.step": "edge_to_bit.stride",
    "evaluate.patch": "evaluate.tile",
    "evaluate.step": "evaluate.stride",
}
"""Keys of earlier versions, and what they are called now."""


class Params(Section):
    """params.yaml."""

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
    def _steps_fit_tiles(self) -> Params:
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
        InputError: the file is missing, is not YAML, or has a key or value that is not understood.
    """
    return read_yaml(path, Params, renamed=RENAMED)
