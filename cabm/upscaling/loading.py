"""Load a model and choose what runs it. A model that was kept compiled needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cabm.checkpoints.model_files import WEIGHTS_FILE, ModelConfig, check_weights, read_config, read_table
from cabm.engine import kept
from cabm.engine.integer import IntegerModel
from cabm.errors import require
from cabm.models.facts import ModelFacts
from cabm.tables.table import EdgeToBitTable
from cabm.upscaling.engine_choice import ChosenRunner, choose_device, choose_runner


@dataclass(frozen=True)
class RunnableModel:
    """A model directory and what runs its model.

    Attributes:
        facts: of the model.
        table: its edge-to-bit table; None unless the kind is cabm.
        config: the parsed config.json.
        directory: the directory itself.
        chosen: what runs the model.
    """

    facts: ModelFacts
    table: EdgeToBitTable | None
    config: ModelConfig
    directory: Path
    chosen: ChosenRunner


def load(directory: Path, *, engine: str = "auto", device: str = "auto") -> RunnableModel:
    """Load a model directory.

    A model that the integer engine runs is kept as it is compiled for this CPU, unless something in it runs
    by PyTorch. The next process that loads it then does not import PyTorch.

    Args:
        directory: the model directory.
        engine, device: see `cabm.upscaling.engine_choice.choose_runner`.

    Raises:
        InputError: damaged files, a table of another model, or see there.
    """
    device = choose_device(engine, device)
    config = read_config(directory)
    key = None
    if engine != "float" and device == "cpu":
        key = kept.key_of(config.model_dump(mode="json", exclude={"provenance"}))
        found = kept.find(key)
        if found is not None:
            check_weights(directory / WEIGHTS_FILE, config.weights_sha256)
            table = read_table(directory, found.facts)
            return RunnableModel(found.facts, table, config, directory, ChosenRunner(found, "int8", "cpu"))
    from cabm.checkpoints.model_directory import load_model

    loaded = load_model(directory)
    if config.precision.kind == "cadyq":
        require(f"{directory}: the selectors of a cadyq model", "kornia")
    chosen = choose_runner(loaded.model, engine=engine, device=device)
    if key is not None and isinstance(chosen.runner, IntegerModel):
        kept.keep(key, chosen.runner)
    return RunnableModel(loaded.model.facts, loaded.table, config, directory, chosen)
