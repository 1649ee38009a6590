from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from cabm.checkpoints.model_files import TABLE_FILE
from cabm.tables.observations import Observations
from tests.tables.test_table import ORIGIN
from tests.upscaling.helpers import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("models") / "m", bypass=60.0)


@pytest.mark.parametrize("name", ["", TABLE_FILE])
def test_a_table_is_described(cabm, model, name):
    code, out, _ = cabm("table", "show", model / name)
    assert code == 0
    assert "score    8.00 and up  FAB 6.00: 4 at 6 bits" in out
    assert json.loads(cabm("table", "show", model / name, "--json")[1])["bypass"]["threshold"] == 60


def test_the_cost_of_a_bypass_is_rounded(cabm, model, tmp_path):
    content = json.loads((model / TABLE_FILE).read_text())
    content["bypass"] = {"part": 16, "threshold": 8.0, "max_loss_db": 0.01, "share": 0.05102040816326531}
    (tmp_path / TABLE_FILE).write_text(json.dumps(content))
    code, out, _ = cabm("table", "show", tmp_path / TABLE_FILE)
    assert code == 0
    assert "parts of 16 x 16 with an edge peak below 8 are bicubic (max_loss_db 0.01, share 0.051)" in out


def test_a_contrast_limit_is_built_in_and_shown(cabm, tmp_path):
    seen = {"scores": np.ones(2), "bits": np.full((2, 3), 4), "images": ["a", "b"]}
    Observations(**seen, **ORIGIN).save(tmp_path / "seen.npz")
    build = ["table", "build", tmp_path / "seen.npz", "--strategy", "lowest", "--max-loss-db", "0"]
    assert cabm(*build, "--contrast-limit", "65", "-o", tmp_path / "limited.json")[0] == 0
    assert cabm(*build, "-o", tmp_path / "plain.json")[0] == 0
    assert "limited to 65 before the network" in cabm("table", "show", tmp_path / "limited.json")[1]
    assert "contrast" not in cabm("table", "show", tmp_path / "plain.json")[1]


@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
@pytest.mark.parametrize("option", ["--fab-cap", "--max-loss-db", "--max-tile-loss-db", "--contrast-limit"])
def test_numbers_that_are_none_are_refused(cabm, tmp_path, option, value):
    code, _, err = cabm("table", "build", tmp_path / "seen.npz", option, value, "-o", tmp_path / "new.json")
    assert code == 2
    assert option in err
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_table_is_drawn(cabm, model, tmp_path, suffix):
    figure = tmp_path / f"table.{suffix}"
    assert cabm("table", "plot", model, "-o", figure) == (0, f"wrote {figure}\n", "")
    if suffix == "png":
        assert Image.open(figure).size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "show", "{tmp}/float"], "a float model without edge_to_bit.json"),
        (["table", "show", "{tmp}/text.json"], "not valid JSON"),
        (["table", "plot", "{model}", "-o", "{tmp}/x.gif"], "name a file that ends in .png, .svg, .pdf"),
    ],
)
def test_bad_requests_are_one_line(cabm, model, tmp_path, arguments, message):
    tiny_model(tmp_path / "float", "float")
    (tmp_path / "text.json").write_text("hello")
    code, _, err = cabm(*(argument.format(tmp=tmp_path, model=model) for argument in arguments))
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1
