"""Model directories: round trips, and errors for damaged ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cabm.checkpoints.model_directory import load_model, save_model
from cabm.errors import InputError
from cabm.files import sha256_file
from cabm.models import Backbone, build_model
from cabm.quant import Kind, Precision
from cabm.quant.functional import weight_codes
from cabm.tables.table import EdgeToBitTable
from tests.checkpoints.helpers import table_of

OPTIONS = {"num_features": 8, "num_blocks": 2}


def make_model(kind: Kind) -> Backbone:
    torch.manual_seed(1)
    return build_model("edsr", 2, Precision(kind), OPTIONS).eval()


def make_table(model: Backbone) -> EdgeToBitTable:
    return table_of(model, [1.0, 5.0], [[4, 4, 4, 6], [8, 8, 6, 8]])


def save(directory: Path, kind: Kind = "cabm") -> Backbone:
    model = make_model(kind)
    save_model(directory, model, table=make_table(model) if kind == "cabm" else None)
    return model


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["float", "pams", "cadyq", "cabm"])
def test_round_trip(kind: Kind, tmp_path: Path) -> None:
    model = save(tmp_path / "model", kind)
    loaded = load_model(tmp_path / "model")
    assert loaded.model.precision == model.precision
    assert loaded.model.options == model.options
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert (loaded.table == make_table(model)) if kind == "cabm" else loaded.table is None


def test_float16_weights_load_as_float32(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "float")
    weights = tmp_path / "model" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights)
    edit_config(tmp_path / "model", weights_sha256=sha256_file(weights))
    loaded = load_model(tmp_path / "model").model
    assert loaded.tail.weight.dtype == torch.float32
    assert torch.equal(loaded.tail.weight, model.tail.weight.half().float())


@pytest.mark.parametrize("kind", ["pams", "cabm"])
def test_packed_weights_compute_the_same_codes(kind: Kind, tmp_path: Path) -> None:
    model = make_model(kind)
    table = make_table(model) if kind == "cabm" else None
    save_model(tmp_path / "float", model, table=table)
    save_model(tmp_path / "packed", model, table=table, packed=True)
    loaded = load_model(tmp_path / "packed").model
    for name in ("conv1", "conv2"):
        wanted, scale = weight_codes(getattr(model.body[1], name).weight, 8)
        found, same_scale = weight_codes(getattr(loaded.body[1], name).weight, 8)
        assert torch.equal(wanted, found) and scale == same_scale
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float", "packed")]
    assert sizes[1] < 0.6 * sizes[0]


def test_saving_replaces_the_whole_directory(tmp_path: Path) -> None:
    save(tmp_path / "model", "cabm")
    save(tmp_path / "model", "float")
    assert sorted(path.name for path in tmp_path.joinpath("model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model directory"):
        load_model(tmp_path / "nothing")
    for missing in ("config.json", "model.safetensors", "edge_to_bit.json"):
        save(tmp_path / "model")
        (tmp_path / "model" / missing).unlink()
        with pytest.raises(InputError, match=missing):
            load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "cabm.model/9"}, "format"),
        ({"backbone": "vgg"}, "backbone 'vgg'"),
        ({"scale": 7}, "scale"),
        ({"options": {"num_features": 10**9}}, "options"),
        ({"options": {"num_features": 4096, "num_blocks": 4096}}, "missing weights|unknown weights"),
        ({"options": {"depth": 3}}, "cannot be built"),
        ({"options": {"num_features": 0, "num_blocks": 1}}, "model"),
        ({"more": 1}, "more"),
        ({"weights_sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_a_wrong_config_is_a_one_line_error(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "model")
    edit_config(tmp_path / "model", **changes)
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tail.weight", torch.full((3, 8, 3, 3), float("inf")), "not finite"),
        ("tail.weight", torch.zeros(3, 8, 1, 1), "shape"),
        ("body.0.act1.alpha", torch.tensor([1.0, 0.0, 1.0]), "not positive"),
    ],
)
def test_unusable_weights_are_refused(name: str, value: torch.Tensor, message: str, tmp_path: Path) -> None:
    save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    save_file(load_file(weights) | {name: value}, weights)
    edit_config(tmp_path / "model", weights_sha256=sha256_file(weights))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "model")


@pytest.mark.parametrize("size", [0, 4, 100])
def test_truncated_weights_are_refused(size: int, tmp_path: Path) -> None:
    save(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    edit_config(tmp_path / "model", weights_sha256=sha256_file(weights))
    with pytest.raises(InputError, match="safetensors"):
        load_model(tmp_path / "model")


def test_table_of_another_model_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "model")
    other = build_model("edsr", 2, Precision("cabm"), {"num_features": 8, "num_blocks": 3})
    table_of(other, [1.0], [[4] * 6]).save(tmp_path / "model" / "edge_to_bit.json")
    with pytest.raises(InputError, match="does not fit"):
        load_model(tmp_path / "model")
