"""Agreement with the outputs of the released models."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cabm.checkpoints.released import import_released
from cabm.tiling.edges import edge_score

REPOSITORY = Path(__file__).resolve().parents[2]
DIRECTORIES = [REPOSITORY / "tests" / "golden", REPOSITORY.parent / "shared" / "golden"]
if "CABM_TEST_GOLDEN" in os.environ:
    DIRECTORIES.append(Path(os.environ["CABM_TEST_GOLDEN"]))
FILES = [path for directory in DIRECTORIES for path in sorted(directory.glob("*_x[234]*.npz"))]
PREFIX = {"float": "fp", "pams": "pams", "cadyq": "cadyq", "cabm": "cadyq"}
FLOAT_MAX, QUANTIZED_MEAN = 1e-2, 0.02  # of 255


def cases():
    for path in FILES:
        with np.load(path) as archive:
            names = archive.files
        for kind, prefix in PREFIX.items():
            output = "cabm" if kind == "cabm" else prefix
            if f"{output}.sr" in names:
                yield pytest.param(path, kind, id=f"{path.parent.parent.name}-{path.stem}-{kind}")


def imported(path: Path, kind: str):
    with np.load(path) as archive:
        golden = {key: torch.from_numpy(archive[key]) for key in archive.files}
    backbone, scale = re.match(r"(\w+)_x(\d)", path.stem).groups()
    start = f"{PREFIX[kind]}.state."
    state = {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}
    return import_released(backbone, kind, state, int(scale)), golden


@pytest.mark.parametrize(("path", "kind"), list(cases()))
def test_outputs_agree_with_the_release(path, kind):
    model, golden = imported(path, kind)
    output_name = "fp" if kind == "float" else kind
    bits = golden["cabm.bits"] if kind == "cabm" else None
    with torch.no_grad():
        output = model(golden["lr"], bits=bits)
    difference = (output.sr - golden[f"{output_name}.sr"]).abs()
    if kind == "float":
        assert difference.max() <= FLOAT_MAX
        assert output.bits is None
    else:
        assert difference.mean() <= QUANTIZED_MEAN
        assert (output.bits is None) == (kind == "pams")
    if output.bits is not None:
        assert torch.equal(output.bits, golden[f"{kind}.bits"])
    if f"{output_name}.feature" in golden:
        expected = golden[f"{output_name}.feature"]
        assert (output.feature - expected).abs().mean() <= 1e-3 * expected.abs().mean()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_a_sample_alone_computes_what_it_does_in_a_batch(path):
    model, golden = imported(path, "cadyq")
    with torch.no_grad():
        together = model(golden["lr"])
        alone = [model(sample[None]) for sample in golden["lr"]]
    assert torch.equal(torch.cat([output.bits for output in alone]), together.bits)
    assert (torch.cat([output.sr for output in alone]) - together.sr).abs().mean() <= QUANTIZED_MEAN


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_edge_scores_agree_with_the_release(path):
    with np.load(path) as archive:
        scores = edge_score(archive["lr"])
        assert scores.tolist() == pytest.approx(archive["edge_score"].tolist(), abs=1e-9)
