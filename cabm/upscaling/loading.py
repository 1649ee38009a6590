"""Load a model and what runs it: of a compiled model that was kept, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cabm.checkpoints.model_files import TABLE_FILE, WEIGHTS_FILE, ModelConfig, check_weights, read_config
from cabm.engine import kept
from cabm.engine.integer import IntegerModel
from cabm.errors import require
from cabm.models.facts import ModelFacts
from cabm.tables.table import EdgeToBitTable
from cabm.upscaling.engine_choice import ChosenRunner, check_names, choose_runner, gpu


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

    Where the integer engine runs the model, it is kept compiled for this CPU. The next process that loads
    it does not import PyTorch.

    Args:
        directory: the model directory.
        engine, device: see `cabm.upscaling.engine_choice.choose_runner`.

    Raises:
        InputError: damaged files, a table of another model, or see there.
    """
    check_names(engine, device)
    config = read_config(directory)
    key = kept.key(config.model_dump(mode="json", exclude={"provenance"}))
    on_cpu = device == "cpu" or (device == "auto" and (engine == "int8" or gpu() is None))
    if engine != "float" and on_cpu:
        found = kept.find(key)
        if found is not None:
            check_weights(directory / WEIGHTS_FILE, config.weights_sha256)
            return RunnableModel(
                found.facts,
                _table(directory, found.facts),
                config,
                directory,
                ChosenRunner(found, "int8", "cpu"),
            )
    from cabm.checkpoints.model_directory import load_model

    loaded = load_model(directory)
    if config.precision.kind == "cadyq":
        require(f"{directory}: the selectors of a cadyq model", "kornia")
    chosen = choose_runner(loaded.model, engine=engine, device=device)
    if isinstance(chosen.runner, IntegerModel):
        kept.keep(key, chosen.runner)
    return RunnableModel(loaded.model.facts, loaded.table, config, directory, chosen)


def _table(directory: Path, facts: ModelFacts) -> EdgeToBitTable | None:
    if facts.precision.kind != "cabm":
        return None
    table = EdgeToBitTable.load(directory / TABLE_FILE)
    table.check(**facts.table_fit)
    return table
