"""A tiny model, and the `cabm` command run in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cabm.cli import main as cli
from tests.upscaling.helpers import tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "m", bypass=60.0)


@pytest.fixture
def cabm(monkeypatch, capsys):
    """Run the command; return its exit code, standard output and standard error.

    Without the line that code is compiled, which depends on what other tests left in the user's cache.
    """

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cabm", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines(True) if "compiling for this CPU" not in line]
        return stop.value.code or 0, out, "".join(lines)

    return run
