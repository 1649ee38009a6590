"""No command replaces a file or a model that exists without --overwrite, and none replaces other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cabm.tables.observations import Observations
from tests.cli.helpers import check_refusal
from tests.reporting.test_page import write_project

COMMANDS = {
    "table.png": "table plot {model} -o {output}",
    "table.json": "table build {observations} --strategy lowest --max-loss-db 0 -o {output}",
    "model.onnx": "export {model} --bits 8 -o {output}",
    "packed": "export {model} --to packed -o {output}",
    "page.html": "report --project {project} -o {output}",
    "page": "report --project {project} -o {output}",
    "imported": "import-checkpoint {checkpoint} --backbone edsr --kind float -o {output}",
}
MODELS = ("packed", "imported")


@pytest.fixture
def arguments(tmp_path, model, golden):
    """Return a function that fills in a command of `COMMANDS`."""
    prefix = "fp.state."
    released = {name: value for name, value in golden("edsr").items() if name.startswith(prefix)}
    weights = {name.removeprefix(prefix): torch.from_numpy(value) for name, value in released.items()}
    torch.save(weights, tmp_path / "edsr.pt")
    observed = Observations(
        scores=np.array([1.0, 9.0]),
        bits=np.array([[4, 6], [8, 8]]),
        images=["a", "b"],
        backbone="edsr",
        scale=2,
        search_space=(4, 6, 8),
        layers=("one", "two"),
        tile=24,
        stride=22,
    )
    observed.save(tmp_path / "observations.npz")
    (tmp_path / "project").mkdir()
    write_project(tmp_path / "project")
    places = {"model": model, "project": tmp_path / "project", "checkpoint": tmp_path / "edsr.pt"}
    places |= {"observations": tmp_path / "observations.npz"}

    def fill(name: str) -> tuple[Path, list[str]]:
        output = tmp_path / "new" / name
        return output, COMMANDS[name].format(output=output, **places).split()

    return fill


@pytest.mark.parametrize("name", COMMANDS)
def test_an_existing_output_is_kept_unless_overwrite_is_given(cabm, arguments, name):
    output, command = arguments(name)
    assert cabm(*command)[0] == 0
    output = output / "report.html" if name == "page" else output
    file = output / "config.json" if name in MODELS else output
    file.write_bytes(b"dear")
    check_refusal(cabm(*command), f"{output}: exists; give --overwrite to replace it, or another name")
    assert file.read_bytes() == b"dear"
    assert cabm(*command, "--overwrite")[0] == 0
    assert file.read_bytes() != b"dear"


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_with_other_files_is_never_replaced(cabm, arguments, name):
    output, command = arguments(name)
    output.mkdir(parents=True)
    (output / "photo.jpg").write_bytes(b"dear")
    (output / "config.json").write_bytes(b"{}")
    check_refusal(cabm(*command, "--overwrite"), "such as photo.jpg; name a new folder")
    assert (output / "photo.jpg").read_bytes() == b"dear"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_or_folder_of_the_other_kind_is_never_replaced(cabm, arguments, name):
    output, command = arguments(name)
    if name in MODELS:
        output.parent.mkdir()
        output.write_bytes(b"dear")
    else:
        output = output / "report.html" if name == "page" else output
        output.mkdir(parents=True)
    check_refusal(cabm(*command, "--overwrite"), f"{output}: is a ")
    assert output.is_dir() == (name not in MODELS)
