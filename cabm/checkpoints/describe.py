"""What a model directory holds, as facts and as lines for people."""

from __future__ import annotations

from typing import Any

from cabm.checkpoints.model_directory import LoadedModel
from cabm.checkpoints.model_files import TABLE_FILE, WEIGHTS_FILE
from cabm.files import sha256_file


def model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """Return the facts about a model as JSON values."""
    network, config, directory = loaded.model, loaded.config, loaded.directory
    facts: dict[str, Any] = {
        "directory": str(directory),
        "backbone": f"{config.backbone} x{config.scale}",
        "options": config.options,
        "precision": config.precision.model_dump(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "macs_per_pixel": sum(layer.macs_per_pixel for layer in network.layers),
        "adaptive_layers": network.num_adaptive,
        "receptive_field": network.receptive_field,
        "weights_bytes": (directory / WEIGHTS_FILE).stat().st_size,
        "weights_sha256": config.weights_sha256,
    }
    if loaded.table is not None:
        facts["table_sha256"] = sha256_file(directory / TABLE_FILE)
        facts["table"] = loaded.table.describe()
    return facts | {"provenance": config.provenance}


def model_lines(facts: dict[str, Any]) -> dict[str, str]:
    """Return what `model_facts` says of the network as lines by title."""
    precision = facts["precision"]
    options = ", ".join(f"{name} {value}" for name, value in facts["options"].items())
    kind = precision["kind"]
    widths = f", search space {list(precision['search_space'])}" if kind in ("cadyq", "cabm") else ""
    weights = "" if kind == "float" else f", {precision['weight_bits']}-bit weights"
    ends = ", quantized ends" if precision["quantize_ends"] else ""
    return {
        "model": facts["directory"],
        "backbone": f"{facts['backbone']}, {options}",
        "precision": f"{kind}{widths}{weights}{ends}",
        "size": f"{facts['parameters'] / 1e6:.2f} million parameters, "
        f"{facts['weights_bytes'] / 1e6:.2f} MB; "
        f"{facts['macs_per_pixel'] / 1e6:.2f} million MACs per input pixel",
        "sees": f"{facts['receptive_field']} input pixels to each side",
        "weights": f"sha256 {facts['weights_sha256']}",
    }
