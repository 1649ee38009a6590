"""The sections of params.yaml: every setting with its unit, legal values and default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, field_validator

from cabm.errors import shown
from cabm.project.schedule import Schedule

# Strict types, because pydantic otherwise reads true as 1. YAML lists still become tuples.
Count = Annotated[StrictInt, Field(ge=1)]
CountOrZero = Annotated[StrictInt, Field(ge=0)]
NotNegative = Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[StrictFloat, Field(gt=0, le=1)]


_OPTIONS = {
    "edsr": ("num_features", "num_blocks", "res_scale", "replicate_tail"),
    "srresnet": ("num_features", "num_blocks", "release_graph"),
    "idn": ("num_features", "num_blocks", "num_distilled"),
    "carn": ("num_features",),
}
"""Constructor arguments of the backbones; written here, as prepare must not depend on `cabm.models`."""
_SWITCHES, _FACTORS = ("replicate_tail", "release_graph"), ("res_scale",)
"""The arguments that are no whole numbers of at least 1."""


def _check_option(where: str, option: str, value: Any) -> None:
    if option in _SWITCHES:
        fits, kind = isinstance(value, bool), "true or false"
    elif option in _FACTORS:
        fits, kind = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        fits, kind = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    if not fits:
        raise ValueError(f"{where}: give {kind} (found {shown(value)})")


class Section(BaseModel, extra="forbid", frozen=True):
    """A section of params.yaml."""


class ModelSettings(Section):
    """The network."""

    name: Literal["edsr", "srresnet", "idn", "carn"] = "edsr"
    """Backbone: edsr, srresnet, idn or carn (the keys of `cabm.models.BACKBONES`)."""

    scale: Annotated[StrictInt, Field(ge=2, le=4)] = 4
    """Upscaling factor: 2, 3 or 4."""

    options: dict[str, dict[str, StrictBool | Count | Positive]] = {}
    """Constructor arguments by backbone: ``edsr: {num_features: 64}``; only those of `name` are used."""

    @field_validator("options", mode="before")
    @classmethod
    def _numbers_or_booleans(cls, options: Any) -> Any:
        by_backbone = options if isinstance(options, dict) else {}
        for backbone, values in by_backbone.items():
            if backbone not in _OPTIONS:
                raise ValueError(
                    f"model.options.{shown(backbone)}: the backbones are {', '.join(_OPTIONS)}"
                )
            for option, value in values.items() if isinstance(values, dict) else ():
                where = f"model.options.{backbone}.{shown(option)}"
                if option not in _OPTIONS[backbone]:
                    raise ValueError(f"{where}: the options are {', '.join(_OPTIONS[backbone])}")
                _check_option(where, option, value)
        return options

    def chosen_options(self) -> dict[str, bool | int | float]:
        """Return the constructor arguments of the chosen backbone."""
        return dict(self.options.get(self.name, {}))


class QuantizationSettings(Section):
    """Bit widths of activations and weights."""

    search_space: tuple[Annotated[StrictInt, Field(ge=2, le=8)], ...] = (4, 6, 8)
    """Ascending widths for adaptive positions, 2..8 bits."""

    weight_bits: Annotated[StrictInt, Field(ge=2, le=8)] | Literal["same"] = 8
    """Width of the weights, 2..8 bits, or ``same`` as the activation they are multiplied with."""

    quantize_ends: bool = False
    """Quantize head and tail to 8 bits, too."""

    skip: Literal[8, "quantized"] = 8
    """Skip connections: 8 (bits), or quantized (the input of the block's first convolution; the paper)."""

    after_relu: Literal["unsigned", "symmetric"] = "unsigned"
    """Codes of b bits after a ReLU: unsigned (0..2^b - 1) or symmetric (both signs; the paper)."""

    weight_granularity: Literal["channel", "tensor"] = "channel"
    """Scales of the weights: one per output channel, or one per tensor (the paper)."""

    @field_validator("search_space")
    @classmethod
    def _ascending(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        if not widths or list(widths) != sorted(set(widths)):
            raise ValueError("list one or more widths of 2..8 bits, ascending, each once")
        return widths


class TrainingSettings(Section):
    """Settings of every training stage."""

    init_from: str | None = None
    """Model directory or packaged model to start from; null: the previous step's model."""

    steps: CountOrZero
    """Optimizer steps, 0 or more."""

    batch_size: Count = 16
    """Patches per batch, 1 or more."""

    patch: Annotated[StrictInt, Field(ge=8)] = 24
    """Side of a patch in low-resolution pixels, 8 or more."""

    learning_rate: Rate
    """Peak learning rate of the weights, more than 0, at most 1."""

    schedule: Schedule = Schedule()
    """Factor on all learning rates over the steps."""

    ema_decay: Annotated[StrictFloat, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights, which becomes the result, 0..1; 0: no averaging."""

    collapse_tail: bool = True
    """Run a linear tail as one convolution, and leave the outermost output pixels out of the L1 loss."""

    validate_every: CountOrZero = 500
    """Steps between two validations; 0: only one, at the end."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights and patches, 0..2**63 - 1."""


class QuantizedTrainingSettings(TrainingSettings):
    """Settings of the steps that train quantized models (2, 3 and 5)."""

    teacher_from: str | None = None
    """Model directory of the teacher; null: the float model in step 2, the 8-bit model in steps 3 and 5."""

    alpha_learning_rate: Rate
    """Peak learning rate of the clip values, more than 0, at most 1."""

    kd_output: NotNegative = 0.0
    """Weight of the L1 distance to the teacher's image, 0 or more; the papers have no such term."""

    kd_feature: NotNegative = 1000.0
    """Weight of the distillation loss on the tail's input (w_kd), 0 or more."""

    kd_blocks: NotNegative = 100.0
    """Weight of the distillation loss on the blocks' outputs (0.1 w_kd), 0 or more."""

    calibration: Literal["peak", "error"] = "error"
    """Initial clip values: peak (mean of max abs(x), as in the papers) or error (least squared error)."""

    calibration_batches: Count = 16
    """Batches to calibrate clip values on, 1 or more."""


class CadyqSettings(QuantizedTrainingSettings):
    """Step 3: train bit selectors."""

    recalibrate: bool = True
    """Calibrate the clip value of every width; false: start all widths at the 8-bit model's clip value."""

    selector_learning_rate: Rate = 1e-4
    """Peak learning rate of the selectors, more than 0, at most 1."""

    w_bit: NotNegative = 1e-4
    """Weight of the bit loss at the first step (w0), 0 or more."""

    w_bit_per_1000: NotNegative = 1e-6
    """Increase of that weight per 1000 steps (w_inc; one epoch of the release), 0 or more."""


class BypassSettings(Section):
    """Which parts of a tile bypass the network and are upscaled by bicubic interpolation."""

    max_loss_db: NotNegative = 0.01
    """PSNR in dB that all validation tiles together may lose, 0 or more; 0: no bypass."""

    max_tile_loss_db: NotNegative = 0.3
    """PSNR in dB that a single validation tile may lose, 0 or more."""

    part: Annotated[StrictInt, Field(ge=8, multiple_of=8)] = 16
    """Side of a part in low-resolution pixels, a multiple of 8; the tile's side: whole tiles."""


class TiledSettings(Section):
    """Tiles of a stage that runs the network on whole images."""

    tile: Count = 96
    """Side of a tile in low-resolution pixels, 1 or more."""

    stride: Count = 94
    """Distance between neighbouring tiles in low-resolution pixels, 1..tile."""


class EdgeToBitSettings(TiledSettings):
    """Step 4: build the edge-to-bit table."""

    strategy: Literal["constant", "lowest", "majority", "monotone"] = "constant"
    """How bits are chosen: constant (one row for all tiles, the least measured noise for fab_cap bits), or
    by which observed row each edge score keeps: lowest (the paper), majority or monotone."""

    fab_cap: Annotated[StrictFloat, Field(gt=0, le=8)] | None = None
    """Highest mean bits of the constant row; null: the mean that the selectors chose. With the other
    strategies, observed rows that are not below it are dropped; null: none. More than 0, at most 8."""

    bypass: BypassSettings = BypassSettings()
    """Parts of tiles that bypass the network."""

    contrast_limit: Positive | None = None
    """Highest contrast of what enters the network: the standard deviation of a tile's pixels, 0..127.5.
    Tiles above it are brought down to it before the network and restored behind it; null: no limit."""

    cadyq_from: str | None = None
    """Model directory to observe; null: step 3's model."""


class CabmSettings(QuantizedTrainingSettings):
    """Step 5: fine-tune with bits from the table."""

    table_from: str | None = None
    """Edge-to-bit table; null: step 4's table."""


class EvaluateSettings(TiledSettings):
    """Measurements on the test sets."""

    whole_image: bool = True
    """Measure every model on whole images, too."""

    engine: Literal["auto", "float"] = "auto"
    """What runs the models: auto (integers where model and CPU allow it) or float (always simulated)."""

    max_whole_pixels: Count = 300_000
    """Largest image, in low-resolution pixels, that is run whole (memory), 1 or more."""

    controls: bool = False
    """Measure two controls of the edge score, too: shuffled table rows, and one row for all tiles."""

    picture: str | None = None
    """``set/image`` of the bit map and the crops; null: the first image of the last set."""


class TrackingSettings(Section):
    """Recording of runs with MLflow."""

    enabled: bool = True
    """Record runs."""

    experiment: Annotated[str, Field(min_length=1, max_length=500)] = "cabm"
    """MLflow experiment of the runs, 1..500 characters."""

    log_every: Count = 50
    """Training steps between two points of a curve, 1 or more."""

    uri: str | None = None
    """Tracking store; null: MLFLOW_TRACKING_URI, or the database ``mlflow.db`` beside ``dvc.yaml``."""


class ServingSettings(Section):
    """Registration of the finished model, and the thresholds for a new champion."""

    enabled: bool = True
    """Log and register the model."""

    min_psnr_gain: Positive = 0.01
    """PSNR gain in dB at no more FAB that makes a new champion, more than 0."""

    min_fab_gain: Positive = 0.01
    """FAB saved in bits at no lower PSNR that makes a new champion, more than 0."""
