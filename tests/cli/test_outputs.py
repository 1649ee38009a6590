"""A folder with other files in it is never replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cabm.cli.main import app
from cabm.cli.outputs import replaceable_folder
from cabm.errors import InputError
from tests.upscaling.helpers import tiny_model


def test_foreign_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"dear")
    with pytest.raises(InputError, match=r"such as photo\.jpg; name a new folder"):
        replaceable_folder(tmp_path)


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    arguments = ["export", str(model), "--to", "packed", "-o"]
    result = CliRunner().invoke(app, [*arguments, str(home)])
    assert isinstance(result.exception, InputError)
    assert (home / "letters").is_dir()
    for _ in range(2):  # new, then replaced
        assert CliRunner().invoke(app, [*arguments, str(tmp_path / "packed")]).exit_code == 0
    assert (tmp_path / "packed" / "config.json").is_file()
