"""The stage `prepare`: pack photographs into training, validation and test stores."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from cabm.data.prepare import prepare
from cabm.data.store import data_hash
from cabm.files import write_json
from cabm.pipeline.stage import Stage


def prepare_data(stage: Stage) -> None:
    """Write the stores, and a summary of their images."""
    bars: dict[str, tqdm] = {}

    def report(part: str, done: int, total: int) -> None:
        if part not in bars:
            bars[part] = tqdm(total=total, desc=part, unit="image", file=sys.stderr)
        bar = bars[part]
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    started = time.perf_counter()
    summary = prepare(stage.params.prepare, stage.params.model.scale, stage.data, report)
    seconds = round(time.perf_counter() - started, 2)
    write_json(stage.metrics / "prepare.json", summary)
    write_json(stage.timing / "prepare.json", {"seconds": seconds})
    stage.tracker.tags({"data.sha256": data_hash(stage.data)})
    for part, facts in summary.items():
        if facts.get("converted_to_srgb"):
            count = f"{facts['converted_to_srgb']} of {facts['images']}"
            print(f"{part}: {count} images were converted to sRGB by their profiles", file=sys.stderr)
        stage.tracker.metrics({f"{part}/{name}": value for name, value in facts.items()}, 0)
