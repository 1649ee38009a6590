"""ONNX files in ONNX Runtime against the simulated model, and packed weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from cabm.checkpoints.export import choose_row, export_onnx
from cabm.checkpoints.model_directory import save_model
from cabm.checkpoints.packed import pack_state, unpack_state
from cabm.cli.main import app
from cabm.engine.packing import Row
from cabm.errors import InputError
from cabm.models import Backbone, build_model
from cabm.quant import Precision
from cabm.quant.layers import QuantConv2d
from cabm.tables.table import EdgeToBitTable
from tests.checkpoints.helpers import table_of
from tests.engine.helpers import BACKBONES, CHOICES, calibrated, photograph, row, simulated


class Agreement(NamedTuple):
    """An exported model compared with the one it was exported from.

    Attributes:
        mean_difference: mean |difference| in levels of 0..255.
        psnr: of one result against the other, in dB.
        integer_convolutions: convolutions that ONNX Runtime runs in integer kernels.
    """

    mean_difference: float
    psnr: float
    integer_convolutions: int


def compare(model: Backbone, path: Path, tiles: Tensor, bits: Row = None) -> Agreement:
    """Run an exported file in ONNX Runtime and compare with the simulated model."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    found = torch.from_numpy(session.run(None, {"image": tiles.float().numpy()})[0])
    wanted = simulated(model, tiles, None if bits is None else torch.tensor([bits] * len(tiles)))
    difference = found.clamp(0, 255) - wanted.clamp(0, 255)
    return Agreement(
        mean_difference=float(difference.abs().mean()),
        psnr=float(10 * torch.log10(255**2 / difference.square().mean().clamp_min(1e-12))),
        integer_convolutions=sum(kind in ("QLinearConv", "ConvInteger") for kind in kinds),
    )


@pytest.mark.parametrize("choices", [{}, CHOICES], ids=["released", "chosen"])
@pytest.mark.parametrize("bits", [4, 8, "mixed"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_onnx_runtime_agrees_on_integer_kernels(
    backbone: str, bits: int | str, choices: dict, tmp_path: Path
) -> None:
    model = calibrated(backbone, **choices)
    given = tuple(row(model, bits)[0].tolist())
    path = tmp_path / "model.onnx"
    export_onnx(model, path, given)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    agreement = compare(model, path, photograph(21, 30, seed=2), given)
    quantized = [module for module in model.modules() if isinstance(module, QuantConv2d)]
    halved = 2 if backbone == "idn" else 0  # its third convolutions, in both blocks
    assert agreement.integer_convolutions == len(quantized) + halved
    assert agreement.psnr > 45
    assert agreement.mean_difference < 0.5


@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_file_takes_images_of_any_size(backbone: str, tmp_path: Path) -> None:
    model = calibrated(backbone)
    bits = choose_row(model, None, bits=[6])
    export_onnx(model, tmp_path / "model.onnx", bits)
    for count, height, width in ((1, 9, 8), (2, 24, 17)):
        tiles = photograph(height, width, count=count, seed=3)
        assert compare(model, tmp_path / "model.onnx", tiles, bits).psnr > 45


@pytest.mark.parametrize("backbone", BACKBONES)
def test_pams_models_take_no_bits(backbone: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    model = calibrated(backbone, "pams", scale=3)
    export_onnx(model, tmp_path / "model.onnx", choose_row(model, None))
    assert compare(model, tmp_path / "model.onnx", photograph(9, 8)).psnr > 45
    with pytest.raises(InputError, match="takes 0 bits"):
        export_onnx(model, tmp_path / "other.onnx", (8,) * model.num_adaptive)
    assert not (tmp_path / "other.onnx").exists()


def three_rows(model: Backbone) -> EdgeToBitTable:
    return table_of(model, [1.0, 5.0, 9.0], [[4, 4, 4, 6], [8, 8, 6, 8], [8, 8, 8, 8]])


def test_a_row_is_chosen_by_score_or_by_bits() -> None:
    model = calibrated("edsr")
    table = three_rows(model)
    assert choose_row(model, table) == (8, 8, 6, 8)  # the median threshold
    assert choose_row(model, table, score=0.0) == choose_row(model, table, score=4.99) == (4, 4, 4, 6)
    assert choose_row(model, table, score=1e6) == (8, 8, 8, 8)
    assert choose_row(model, table, bits=[6]) == (6, 6, 6, 6)
    assert choose_row(model, table, bits=[4, 6, 8, 8]) == (4, 6, 8, 8)


@pytest.mark.parametrize(
    ("kind", "with_table", "given", "message"),
    [
        ("cabm", True, {"score": 1.0, "bits": [8]}, "not both"),
        ("cabm", True, {"score": float("nan")}, "edge score nan"),
        ("cadyq", False, {}, "give bits"),
        ("pams", False, {"score": 1.0}, "omit the score"),
    ],
)
def test_no_row_can_be_chosen(kind: str, with_table: bool, given: dict, message: str) -> None:
    model = calibrated("edsr", kind)
    with pytest.raises(InputError, match=message):
        choose_row(model, three_rows(model) if with_table else None, **given)


@pytest.mark.parametrize(
    ("bits", "message"),
    [(None, "takes 4 bits"), ((4,), "takes 4 bits"), ((5,) * 4, "not in the search space")],
)
def test_wrong_bits_are_refused(bits: Row, message: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(InputError, match=message):
        export_onnx(calibrated("edsr"), tmp_path / "model.onnx", bits)
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"cabm\[onnx\]"):
        export_onnx(calibrated("edsr"), tmp_path / "model.onnx", (4,) * 4)


def test_the_command_writes_the_row_it_is_given(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = calibrated("edsr")
    save_model(tmp_path / "model", model, table=three_rows(model))

    def exported(*options: str) -> str:
        path = tmp_path / "out.onnx"
        result = CliRunner().invoke(
            app, ["export", str(tmp_path / "model"), "-o", str(path), "--overwrite", *options]
        )
        assert result.exit_code == 0, result.output
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}["bits"]

    assert exported() == "8 8 6 8"
    assert exported("--score", "2") == "4 4 4 6"
    assert exported("--bits", "6") == "6 6 6 6"
    assert exported("--bits", "4,6,8,8") == "4 6 8 8"
    for wrong in (["--bits", "four"], ["--bits", "8", "--to", "packed"]):
        arguments = ["export", str(tmp_path / "model"), "-o", str(tmp_path / "no"), *wrong]
        assert isinstance(CliRunner().invoke(app, arguments).exception, InputError)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_weights_are_the_same_codes(backbone: str, weight_bits: int, granularity: str) -> None:
    precision = {"weight_bits": weight_bits, "weight_granularity": granularity}
    model = calibrated(backbone, **precision)
    restored = calibrated(backbone, **precision)
    restored.load_state_dict(unpack_state(pack_state(model)))
    for before, after in zip(model.modules(), restored.modules(), strict=True):
        if isinstance(before, QuantConv2d):
            codes, scale = before.codes(before.weight_bits)
            codes_again, scale_again = after.codes(after.weight_bits)
            assert torch.equal(codes, codes_again)
            torch.testing.assert_close(scale_again, scale, rtol=1e-6, atol=0)
    tiles, bits = photograph(16, 16), row(model, "mixed")
    difference = simulated(restored, tiles, bits) - simulated(model, tiles, bits)
    assert float(difference.abs().mean()) < 0.5  # head and tail in float16 may change a few codes


def test_a_packed_baseline_is_small() -> None:
    packed = pack_state(build_model("edsr", 4, Precision("cabm")))
    assert sum(tensor.nbytes for tensor in packed.values()) <= 2.0e6


def test_weights_with_the_activations_width_are_not_packed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight_bits"):
        save_model(tmp_path / "packed", calibrated("edsr", "pams", weight_bits="same"), packed=True)
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
    scale = packed[f"{name}.scale"]
    for wrong in (
        scale[0],
        scale[:, None],
        torch.cat([scale, scale]),
    ):  # other shapes, right and wrong sizes
        with pytest.raises(InputError, match=r"int8 codes need a positive .*\.scale"):
            unpack_state(packed | {f"{name}.scale": wrong})
    with pytest.raises(InputError, match="int8 codes need"):
        unpack_state(packed | {name: packed[name].flatten()[0]})
    with pytest.raises(InputError, match="-128"):
        unpack_state(packed | {name: torch.full_like(packed[name], -128)})
