"""`cabm bench upscale IMAGE`: the timed runs give equal images, and the figures add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from cabm.bench.tiling import bench_tiling
from cabm.checkpoints.find import find_model
from cabm.cli.bench_upscale import bench_upscale
from cabm.errors import InputError
from cabm.imaging.images import write_image


@pytest.fixture()
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    write_image(path, np.ascontiguousarray(astronaut()[:150, 100:270]))
    return path


def test_grouped_tiles_equal_tiles_one_by_one(photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_upscale(photo, model=None, rounds=1, threads=1, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert result["tiles"] == 4
    assert result["largest_difference"] <= 1, "float sums round differently in batches of other sizes"
    assert result["overlap_share"] == pytest.approx(4 * 96**2 / (150 * 170))
    assert 0 < result["scoring_share"] < 1
    assert result["speedup"] == pytest.approx(result["one_by_one"] / result["grouped"])


def test_a_model_without_a_table_is_refused(photo: Path) -> None:
    with pytest.raises(InputError, match="float model has no table; give a cabm model"):
        bench_tiling(photo, find_model("edsr_x4/float"), rounds=1)
