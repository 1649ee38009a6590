"""The sections of params.yaml, typed: every knob, its unit, its legal values and its default."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, field_validator

from cabm.errors import InputError
from cabm.machine.cpu import multiplies_bfloat16
from cabm.project.schedule import Schedule

Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[StrictInt, Field(ge=1)]
PositiveNumber = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Section(BaseModel):
    """A section of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(Section):
    """Which network."""

    name: str = "edsr"
    """Backbone: a key of `cabm.models.BACKBONES`, which the first step checks."""

    scale: Annotated[int, Field(ge=2, le=4)] = 4
    """Upscaling: 2, 3 or 4."""

    options: dict[str, dict[str, StrictBool | PositiveInt | PositiveNumber]] = {}
    """Constructor arguments by backbone, as ``edsr: {num_features: 64}``; only the chosen one counts."""

    def chosen_options(self) -> dict[str, bool | int | float]:
        """Return the constructor arguments of the chosen backbone."""
        return dict(self.options.get(self.name, {}))


class QuantizationSettings(Section):
    """What quantized positions compute at."""

    search_space: tuple[Annotated[int, Field(ge=0, le=8)], ...] = (4, 6, 8)
    """Ascending widths for adaptive positions, 2..8 bits; 0 in front: residual blocks can be skipped."""

    weight_bits: Annotated[int, Field(ge=2, le=8)] | Literal["same"] = 8
    """Width of the weights; ``same``: that of the activation they meet."""

    quantize_ends: bool = False
    """8-bit head and tail too."""

    @field_validator("search_space")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not any(widths) or 1 in widths or list(widths) != sorted(set(widths)):
            raise ValueError("list one or more widths of 2..8 bits, ascending, each once; 0 may lead them")
        return widths


class RuntimeSettings(Section):
    """How a stage computes; none of it should change what a run means."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where; auto takes a GPU if there is one."""

    processes: PositiveInt | Literal["auto"] = 1
    """Processes of this machine that train together; auto: one per visible GPU, without GPUs one."""

    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of torch in a process; 0: as many as cores, shared by the processes."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of the convolutions in training; auto: bf16 where the processor multiplies it."""

    checkpoint_seconds: NotNegative = 60.0
    """How often training writes its resume state."""

    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """How long a process waits for the others before the training ends, with an error."""

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            InputError: cuda is asked for and absent.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("runtime.device: cuda is asked for, but torch sees no GPU; use auto or cpu")
        gpu = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if gpu else "cpu")

    def num_processes(self) -> int:
        """Return how many processes of this machine train together."""
        if self.processes != "auto":
            return self.processes
        return torch.cuda.device_count() if self.torch_device().type == "cuda" else 1

    def autocast(self) -> torch.dtype | None:
        """Return the type that convolutions compute in, None for float32."""
        if self.precision == "auto":
            return torch.bfloat16 if multiplies_bfloat16(self.torch_device()) else None
        return torch.bfloat16 if self.precision == "bf16" else None


class TrainingSettings(Section):
    """What the training stages have in common."""

    init_from: str | None = None
    """Model directory (or packaged model name) to start from, instead of the step before."""

    steps: Annotated[int, Field(ge=0)]
    """Optimizer steps."""

    batch_size: Count = 16
    """Patches in a batch."""

    patch: Annotated[int, Field(ge=8)] = 24
    """Side of a patch in low-resolution pixels."""

    learning_rate: Rate
    """Peak rate of the weights."""

    schedule: Schedule = Schedule()
    """Common factor on all rates over the steps."""

    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running average of the weights that is kept; 0: the last weights are kept."""

    collapse_tail: bool = True
    """Run a linear tail as one convolution and leave the outermost output pixels out of L1."""

    validate_every: Annotated[int, Field(ge=0)] = 500
    """Steps between validations; 0: only at the end."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights and patches."""


class QuantizedTrainingSettings(TrainingSettings):
    """What the steps that learn clip values add."""

    teacher_from: str | None = None
    """Model directory of the teacher, instead of the step's own."""

    alpha_learning_rate: Rate
    """Peak rate of the clip values."""

    kd_feature: NotNegative = 1000.0
    """Weight of the distillation of the tail's input (w_kd)."""

    kd_blocks: NotNegative = 100.0
    """Weight of the distillation of block features (0.1 w_kd)."""

    calibration: Literal["peak", "error"] = "error"
    """How clip values without a trained start are set: mean max|x| (the papers), or least squared error."""

    calibration_batches: Count = 16
    """Batches that clip values are calibrated on."""


class CadyqSettings(QuantizedTrainingSettings):
    """Step 3: bit selectors."""

    recalibrate: bool = True
    """Calibrate the clip values of every width anew, instead of starting all at the 8-bit model's."""

    selector_learning_rate: Rate = 1e-4
    """Peak rate of the selectors."""

    w_bit: NotNegative = 1e-4
    """Weight of the bit loss at the first step (w0)."""

    w_bit_per_1000: NotNegative = 1e-6
    """Growth of that weight over 1000 steps (w_inc; an epoch of the release)."""


class BypassSettings(Section):
    """Which parts of tiles do not enter the network (bicubic instead)."""

    max_loss_db: NotNegative = 0.01
    """PSNR over all validation tiles that may be lost; 0: everything is computed."""

    max_tile_loss_db: NotNegative = 0.3
    """PSNR that any one validation tile may lose."""

    part: Annotated[int, Field(ge=8, multiple_of=8)] = 16
    """Side of the parts in low-resolution pixels; of the tile's size: whole tiles."""


class EdgeToBitSettings(Section):
    """Step 4: the tables."""

    tile: Count = 96
    """Side of a tile in low-resolution pixels."""

    stride: Count = 94
    """Distance of neighbouring tiles, 1..tile."""

    strategy: Literal["lowest", "majority", "monotone"] = "monotone"
    """Which of the bit rows seen at a score is kept; the paper keeps the lowest."""

    fab_cap: Annotated[float, Field(gt=0, le=8)] | None = None
    """Drop observed rows whose FAB is not below this."""

    bypass: BypassSettings = BypassSettings()
    """What is not computed."""

    cadyq_from: str | None = None
    """Model directory to observe, instead of step 3's."""


class CabmSettings(QuantizedTrainingSettings):
    """Step 5: fine-tuning with bits from the tables."""

    table_from: str | None = None
    """Edge-to-bit table to use, instead of step 4's."""


class EvaluateSettings(Section):
    """What is measured at the end."""

    tile: Count = 96
    """Side of a tile in low-resolution pixels."""

    stride: Count = 94
    """Distance of neighbouring tiles, 1..tile."""

    whole_image: bool = True
    """Measure each model on uncut images too, for comparison."""

    max_whole_pixels: Count = 300_000
    """Low-resolution pixels above which an image is not run uncut (memory)."""

    controls: bool = False
    """Measure CABM with shuffled rows and with one row for all too: is the edge score worth anything?"""

    picture: str | None = None
    """``set/image`` that bit map and crops show; the first image of the last set by default."""


class TrackingSettings(BaseModel):
    """Where runs are recorded, and how often."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    """Record runs at all."""
    experiment: str = Field("cabm", min_length=1, max_length=500)
    """The MLflow experiment that the runs belong to."""
    log_every: int = Field(50, ge=1)
    """Training steps between two records of the curves."""
    uri: str | None = None
    """The store; null: MLFLOW_TRACKING_URI, else ``mlflow.db`` beside ``dvc.yaml``."""


class ServingSettings(BaseModel):
    """Whether the finished model is registered, and when it becomes the champion."""

    model_config = ConfigDict(extra="forbid")

    enabled: bool = True
    """Log and register the model."""
    min_psnr_gain: float = Field(0.01, gt=0, allow_inf_nan=False)
    """dB by which PSNR must be higher, at no more FAB."""
    min_fab_gain: float = Field(0.01, gt=0, allow_inf_nan=False)
    """Bits by which FAB must be lower, at no lower PSNR."""
