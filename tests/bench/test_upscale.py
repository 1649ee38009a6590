from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cabm.bench import contenders, peers
from cabm.bench import upscale as bench
from cabm.bench.upscale import FLOAT, INTEGER, SIMULATED, UpscaleBench, bench_upscale, format_report
from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_directory import save_model
from cabm.cli.bench_upscale import bench_upscale as command
from cabm.errors import InputError
from cabm.models import build_model
from cabm.quant import Precision
from tests.engine.helpers import OPTIONS, calibrated, needs_units, photograph

SMALL = {"height": 40, "width": 60, "tile": 24, "stride": 22, "rounds": 1, "tiles": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", calibrated("edsr", "pams"))
    return tmp_path / "model"


@needs_units
def test_times_every_contender_and_prints_them(model: Path) -> None:
    result = bench_upscale(UpscaleBench(model=model, threads=1, peers=False, **SMALL))
    rows = {row["name"]: row for row in result["rows"]}
    assert {FLOAT, SIMULATED, INTEGER} <= rows.keys()
    assert rows[FLOAT]["speedup"] == 1
    assert result["tiles"] == 6
    for row in rows.values():
        assert row["seconds_per_tile"] > 0
        assert row["seconds_per_image"] == pytest.approx(6 * row["seconds_per_tile"])
    assert 0 < result["int8"]["share"] < 2
    assert set(result["peak_rss_mb"]) == {FLOAT, INTEGER}
    assert result["memory_share"] == result["peak_rss_mb"][INTEGER] / result["peak_rss_mb"][FLOAT]
    assert all(10 < result["before_rss_mb"][name] <= peak for name, peak in result["peak_rss_mb"].items())
    json.dumps(result)
    printed = format_report(result)
    assert all(name in printed for name in rows)
    assert printed.count("MB of it before the first tile") == 2


@needs_units
def test_times_a_tile_at_each_width() -> None:
    small = {"peers": False, "threads": 1, "backbone": "carn", "weight_bits": "same"} | SMALL
    result = bench_upscale(UpscaleBench(**small))
    assert result["by_bits"].keys() == {"4", "6", "8"} and result["by_bits"]["8"] == 1
    assert all(f"int8 engine, 1 thread, {bits} bits" in format_report(result) for bits in (4, 6, 8))
    assert "time of a tile with one width in all layers: 4 bits" in format_report(result)


def test_reports_why_contenders_were_not_timed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "supports", lambda model: "no units here")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    result = bench_upscale(UpscaleBench(model=model, threads=1, **SMALL))
    assert {row["name"] for row in result["rows"]} == {FLOAT, SIMULATED}
    assert "int8 engine: not timed: no units here" in format_report(result)
    printed = format_report(result)
    for name in (
        "OpenVINO int8 (NNCF): not timed: openvino and nncf",
        "ONNX Runtime: not timed",
        "ncnn: not",
    ):
        assert name in printed
    assert "cabm[bench]" in printed


def test_contenders_load_random_weights_and_do_not_calibrate_them(tmp_path, monkeypatch) -> None:
    work = UpscaleBench(backbone="carn", scale=2, tiles=1).work(tmp_path)
    monkeypatch.setattr(contenders, "AlphaObserver", None)
    model, table = work.load()
    again, _ = work.load()
    assert table is None and model.precision.kind == "cabm"
    state, same = model.state_dict(), again.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    clips = {
        round(float(module.alpha.detach().max()), 3)
        for module in model.modules()
        if hasattr(module, "alpha")
    }
    assert len(clips) > 5, "calibrated, each quantizer by its own inputs"


def test_the_command_knows_packaged_models_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = []
    monkeypatch.setattr(bench, "bench_upscale", lambda options: timed.append(options.model) or {})
    command(model="edsr_x4", as_json=True)
    command(as_json=True)
    assert timed == [find_model("edsr_x4/cabm"), None]
    command(weight_bits="same", as_json=True)
    with pytest.raises(InputError, match="--weight-bits 9: give 2 to 8, or same"):
        command(weight_bits="9", as_json=True)
    with pytest.raises(InputError, match="no_such"):
        command(model="no_such", as_json=True)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", sorted(OPTIONS))
@pytest.mark.parametrize("runners", [peers.onnx_runtime_runners, peers.ncnn_runners])
def test_other_runtimes_compute_the_same_network(backbone: str, runners: Callable) -> None:
    pytest.importorskip("pnnx")
    torch.manual_seed(0)
    model = build_model(backbone, 4, Precision("float"), OPTIONS[backbone]).eval()
    tiles = photograph(24, 24, count=2).float()
    with torch.no_grad():
        wanted = model(tiles).sr.numpy()
    for name, run in runners(model, tiles, 1).items():
        found = np.concatenate(run(tiles))
        error = np.abs(found - wanted).mean() / np.abs(wanted).mean()
        assert error < (0.1 if name == "int8" else 1e-4)


def test_the_fastest_is_chosen() -> None:
    runs = {"slow": lambda tiles: time.sleep(0.1), "fast": lambda tiles: None}
    assert peers.fastest(runs, torch.zeros(1, 3, 2, 2)) == ("fast", runs["fast"])


@needs_units
@pytest.mark.slow
def test_other_runtimes_are_timed(model: Path) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("pnnx")
    result = bench_upscale(UpscaleBench(model=model, threads=1, **SMALL))
    for peer in (bench.OPENVINO, bench.ONNX_RUNTIME, bench.NCNN):
        assert any(row["name"].startswith(peer) for row in result["rows"])
