"""One uninterrupted run of the pipeline, to compare interrupted runs with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from tests.faults.pipeline import STAGES, make_fault_project, repro
from tests.sharing.project import Clone, surroundings


@dataclass(frozen=True)
class Unbroken:
    """A project whose pipeline has run once without a fault, and the seconds that each stage took."""

    project: Clone
    seconds: Mapping[str, float]


@pytest.fixture(scope="session")
def fault_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return surroundings(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, fault_environment: dict[str, str]) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    project = make_fault_project(folder / "project", fault_environment)
    starts = []
    with repro(project, folder / "repro.log") as running:
        for stage in STAGES:
            assert running.wait_for_stage(stage), running.output
            starts.append(time.monotonic())
        assert running.process.wait() == 0, running.output
    ends = [*starts[1:], time.monotonic()]
    seconds = {stage: end - start for stage, start, end in zip(STAGES, starts, ends, strict=True)}
    project.commit("Run the pipeline")
    return Unbroken(project, seconds)
