from __future__ import annotations

import json
from pathlib import Path

import pytest

from cabm.bench import openvino as openvino_int8
from cabm.bench import upscale as bench
from cabm.bench.upscale import FLOAT, INTEGER, SIMULATED, UpscaleBench, bench_upscale, format_report
from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import save_model
from cabm.cli.bench_upscale import bench_upscale as command
from cabm.errors import InputError
from tests.engine.helpers import calibrated, needs_units

SMALL = {"height": 40, "width": 60, "tile": 24, "stride": 22, "rounds": 1, "tiles": 2, "memory": False}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", calibrated("edsr", "pams"))
    return tmp_path / "model"


@needs_units
def test_times_every_contender_and_prints_them(model: Path) -> None:
    result = bench_upscale(UpscaleBench(model=model, threads=1, openvino=False, **SMALL))
    rows = {row["name"]: row for row in result["rows"]}
    assert {FLOAT, SIMULATED, INTEGER} <= rows.keys()
    assert rows[FLOAT]["speedup"] == 1
    assert result["tiles"] == 6
    for row in rows.values():
        assert row["seconds_per_tile"] > 0
        assert row["seconds_per_image"] == pytest.approx(6 * row["seconds_per_tile"])
    assert 0 < result["int8"]["share"] < 2
    json.dumps(result)
    printed = format_report(result)
    assert all(name in printed for name in rows)


def test_reports_why_contenders_were_not_timed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "supports", lambda model: "no units here")
    monkeypatch.setattr(openvino_int8, "installed", lambda: False)
    result = bench_upscale(UpscaleBench(model=model, threads=1, **SMALL))
    assert {row["name"] for row in result["rows"]} == {FLOAT, SIMULATED}
    assert "int8 engine: not timed: no units here" in format_report(result)
    assert "cabm[bench]" in format_report(result)


def test_the_command_knows_packaged_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(bench, "bench_upscale", lambda options: timed.append(options.model) or {})
    command(model="edsr_x4", as_json=True)
    command(as_json=True)
    assert timed == [find_model("edsr_x4/cabm"), None]
    with pytest.raises(InputError, match="no_such"):
        command(model="no_such", as_json=True)


@needs_units
@pytest.mark.slow
def test_openvino_and_memory(model: Path) -> None:
    pytest.importorskip("nncf")
    result = bench_upscale(UpscaleBench(model=model, threads=1, **(SMALL | {"memory": True})))
    assert any("OpenVINO" in row["name"] for row in result["rows"])
    assert set(result["peak_rss_mb"]) == {FLOAT, INTEGER}
    assert result["peak_rss_mb"][FLOAT] != result["peak_rss_mb"][INTEGER], "each in a process of its own"
