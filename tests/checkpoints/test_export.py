from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cabm.checkpoints.export import (
    compare_onnx,
    export_onnx,
    export_onnx_rows,
    export_packed,
)
from cabm.checkpoints.packed import pack_state, unpack_state
from cabm.errors import InputError
from cabm.files import read_json
from cabm.models import build_model
from cabm.quant import Precision
from cabm.quant.functional import weight_codes
from cabm.quant.layers import QuantConv2d
from tests.engine.helpers import BACKBONES, calibrated, photograph, row, simulated


@pytest.mark.parametrize("bits", [4, 8, "mixed"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_onnx_runtime_agrees_on_integer_kernels(backbone: str, bits: int | str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = calibrated(backbone)
    given = tuple(row(model, bits)[0].tolist())
    path = tmp_path / "model.onnx"
    export_onnx(model, path, given)
    agreement = compare_onnx(model, path, photograph(21, 30, seed=2), given)
    quantized = [module for module in model.modules() if isinstance(module, QuantConv2d)]
    halved = 2 if backbone == "idn" else 0  # its third convolutions, in both blocks
    assert agreement.integer_convolutions == len(quantized) + halved
    assert agreement.psnr > 45
    assert agreement.mean_difference < 0.5
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pams_models_take_no_bits(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = calibrated(backbone, "pams", scale=3)
    export_onnx(model, tmp_path / "model.onnx")
    assert compare_onnx(model, tmp_path / "model.onnx", photograph(9, 8)).psnr > 45
    with pytest.raises(InputError, match="takes no bits"):
        export_onnx(model, tmp_path / "other.onnx", (8,) * model.num_adaptive)
    assert not (tmp_path / "other.onnx").exists()


def test_a_table_gives_a_file_per_distinct_row(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = calibrated("edsr")
    rows = np.array([[4] * 4, [4, 6, 8, 8], [4] * 4])
    files = export_onnx_rows(model, tmp_path / "out", rows)
    listed = read_json(tmp_path / "out" / "rows.json")
    assert [entry["bits"] for entry in listed["rows"]] == [[4, 4, 4, 4], [4, 6, 8, 8]]
    assert [tmp_path / "out" / entry["file"] for entry in listed["rows"]] == files
    assert all(file.is_file() for file in files)


@pytest.mark.parametrize(
    ("bits", "message"), [(None, "takes 4 bits"), ((4,), "takes 4 bits"), ((5,) * 4, "not all in")]
)
def test_wrong_bits_are_refused(bits: tuple[int, ...] | None, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match=message):
        export_onnx(calibrated("edsr"), tmp_path / "model.onnx", bits)
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = builtins.__import__

    def missing(name: str, *arguments: object) -> object:
        if name == "onnx":
            raise ImportError(name)
        return plain(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"cabm\[onnx\]"):
        export_onnx(calibrated("edsr"), tmp_path / "model.onnx", (4,) * 4)


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_weights_are_the_same_codes(backbone: str, weight_bits: int) -> None:
    model = calibrated(backbone, weight_bits=weight_bits)
    restored = calibrated(backbone, weight_bits=weight_bits)
    restored.load_state_dict(unpack_state(pack_state(model)))
    for before, after in zip(model.modules(), restored.modules(), strict=True):
        if isinstance(before, QuantConv2d):
            codes, scale = weight_codes(before.weight, before.weight_bits)
            codes_again, scale_again = weight_codes(after.weight, after.weight_bits)
            assert torch.equal(codes, codes_again)
            assert float(scale) == pytest.approx(float(scale_again), rel=1e-6)
    tiles, bits = photograph(16, 16), row(model, "mixed")
    difference = simulated(restored, tiles, bits) - simulated(model, tiles, bits)
    assert float(difference.abs().mean()) < 0.5  # the ends in float16 may move single codes


def test_a_packed_baseline_is_small(tmp_path: Path) -> None:
    model = build_model("edsr", 4, Precision("cabm"))
    export_packed(model, tmp_path / "packed.safetensors")
    assert (tmp_path / "packed.safetensors").stat().st_size <= 2.0e6
    model.load_state_dict(unpack_state(load_file(tmp_path / "packed.safetensors")))


def test_weights_that_follow_activations_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight_bits"):
        export_packed(calibrated("edsr", weight_bits="same"), tmp_path / "packed.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_packs_are_refused() -> None:
    packed = pack_state(calibrated("edsr"))
    name = "body.0.conv1.weight"
    for scale in (torch.tensor([0.0]), torch.tensor([float("nan")]), torch.ones(2)):
        with pytest.raises(InputError, match="positive"):
            unpack_state(packed | {f"{name}.scale": scale})
    without = {key: value for key, value in packed.items() if key != f"{name}.scale"}
    with pytest.raises(InputError, match="positive"):
        unpack_state(without)
    with pytest.raises(InputError, match="-128"):
        unpack_state(packed | {name: torch.full_like(packed[name], -128)})
