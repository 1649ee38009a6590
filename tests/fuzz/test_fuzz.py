"""Readers of damaged files: they read them or refuse them in one line."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import inputs
from tests.fuzz.targets import NAMES, outcome, targets

EXAMPLES = {"default": 20, "slow": 2000}


def attack(name: str, examples: int) -> None:
    target = targets()[name]

    @settings(
        max_examples=max(5, round(target.share * examples)),
        deadline=None,
        derandomize=examples == EXAMPLES["default"],
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: st.DataObject) -> None:
        content = data.draw(inputs(target))
        with tempfile.TemporaryDirectory() as folder:
            outcome(target, Path(folder), content)

    run()


def test_names_lists_every_target() -> None:
    assert set(NAMES) == set(targets())


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_accepted(name: str, tmp_path: Path) -> None:
    """Otherwise the mutations would never get past the first check."""
    target = targets()[name]
    for number, seed in enumerate(target.seeds):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert outcome(target, folder, seed)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_read_or_refused_in_one_line(name: str) -> None:
    attack(name, EXAMPLES["default"])


@pytest.mark.parametrize("side", [10**12, 10**18, 10**40])
def test_arrays_larger_than_any_memory_are_refused_in_one_line(side: int, tmp_path: Path) -> None:
    """Found by atheris: NumPy computes the size from the header before it reads values."""
    positions, observations = (targets()[name] for name in ("positions", "observations"))
    seed = positions.seeds[0]
    length = int.from_bytes(seed[8:10], "little")
    header = seed[10 : 10 + length].decode().rstrip().replace("(2, 3)", f"({side}, 3)")
    damaged = seed[:10] + header.ljust(length - 1).encode() + b"\n" + seed[10 + length :]
    assert len(damaged) == len(seed)
    assert not outcome(positions, tmp_path, damaged)

    archive, changed = zipfile.ZipFile(io.BytesIO(observations.seeds[0])), io.BytesIO()
    with zipfile.ZipFile(changed, "w") as copy:
        for name in archive.namelist():
            data = archive.read(name)
            if name == "scores.npy":
                length = int.from_bytes(data[8:10], "little")
                header = data[10 : 10 + length].decode().rstrip().replace("(6,)", f"({side},)")
                data = data[:10] + header.ljust(length - 1).encode() + b"\n" + data[10 + length :]
            copy.writestr(name, data)
    assert not outcome(observations, tmp_path, changed.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(name: str) -> None:
    attack(name, EXAMPLES["slow"])
