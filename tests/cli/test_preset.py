from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cabm.cli.main import app
from cabm.cli.preset import preset_names
from cabm.project.params import Params, load_params
from tests.conftest import REPOSITORY

PRESETS = REPOSITORY / "cabm" / "project" / "presets"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["preset", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def written(name: str, folder: Path) -> Params:
    path = folder / "params.yaml"
    run(name, "-o", str(path))
    return load_params(path)


def test_the_list_of_presets() -> None:
    assert preset_names() == ["edsr_x4", "idn_x2", "paper", "sample", "small"]
    listed = run("--list")
    for name in preset_names():
        (line,) = [line for line in listed.splitlines() if line.startswith(f"{name} ")]
        assert len(line) > 40


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name: str, tmp_path: Path) -> None:
    params = written(name, tmp_path)
    assert params.model.name == ("idn" if name.startswith("idn") else "edsr")
    assert (tmp_path / "params.yaml").read_bytes() == (PRESETS / f"{name}.yaml").read_bytes()


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_every_param_that_dvc_looks_up(name: str) -> None:
    """DVC knows no defaults, so every param that dvc.yaml names must be in the file."""
    content = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for param in {param for stage in stages.values() for param in stage["params"]}:
        found: Any = content
        for key in param.split("."):
            assert key in found, param
            found = found[key]


def test_the_sample_is_the_params_file_of_the_repository() -> None:
    assert (PRESETS / "sample.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()


def test_the_papers_schedule(tmp_path: Path) -> None:
    params = written("paper", tmp_path)
    sections = [params.full_precision, params.pams, params.cadyq, params.cabm]
    assert [section.steps for section in sections] == [600_000, 100_000, 300_000, 300_000]
    assert [section.patch * params.model.scale for section in sections] == [192, 96, 96, 96]
    assert [section.learning_rate for section in sections] == [1e-4, 1e-5, 1e-4, 1e-5]
    assert {section.batch_size for section in sections} == {16}
    for section in sections:
        half = section.steps // 2
        assert [section.schedule.factor(step, section.steps) for step in (0, half - 1, half)] == [1, 1, 0.5]
    assert (params.pams.alpha_learning_rate, params.cadyq.alpha_learning_rate) == (1e-4, 1e-4)
    assert params.cabm.alpha_learning_rate == 1e-2
    assert (params.cadyq.w_bit, params.cadyq.w_bit_per_1000) == (1e-4, 1e-6)
    assert (params.edge_to_bit.tile, params.edge_to_bit.stride) == (96, 94)
    assert params.model.chosen_options() == {"num_features": 64, "num_blocks": 16}


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("mine")
    result = CliRunner().invoke(app, ["preset", "small", "-o", str(path)])
    assert result.exit_code == 1
    assert "replace it with --force" in str(result.exception)
    assert path.read_text() == "mine"
    run("small", "-o", str(path), "--force")
    assert load_params(path).full_precision.steps == 20_000


def test_an_unknown_preset_is_refused_with_the_list() -> None:
    result = CliRunner().invoke(app, ["preset", "huge"])
    assert result.exit_code == 1
    assert (
        str(result.exception)
        == "huge: no such preset; the presets are edsr_x4, idn_x2, paper, sample, small"
    )
