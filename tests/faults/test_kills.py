"""SIGKILL at random moments of every stage: the outs equal those of an uninterrupted run, to the bit."""

from __future__ import annotations

import os
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.faults.conftest import Unbroken
from tests.faults.pipeline import (
    EXACT,
    STAGES,
    TRAINING,
    assert_whole,
    cached_files,
    leftovers,
    make_fault_project,
    repro,
)
from tests.sharing.project import Clone

pytestmark = pytest.mark.slow

KILLS = {stage: 5 if stage in TRAINING else 2 for stage in STAGES}
TRAINING_SECONDS = 0.3


def has_state(project: Clone, stage: str) -> bool:
    """Whether a stage has a resume state."""
    return any((project.root / ".resume" / stage).rglob("state.safetensors"))


@pytest.mark.parametrize("seed", [8, 9])
def test_killed_pipelines_end_like_an_uninterrupted_one(
    seed: int, unbroken: Unbroken, fault_environment: dict[str, str], tmp_path: Path
) -> None:
    chance = random.Random(seed)
    project = make_fault_project(tmp_path / "project", fault_environment)
    kept: set[str] = set()
    killed: Counter[str] = Counter()
    resumed: Counter[str] = Counter()
    for stage, kills in KILLS.items():
        again: tuple[str, ...] = ()
        while killed[stage] < kills:
            with repro(project, tmp_path / f"{stage}-{killed[stage]}.log", *again, stage) as running:
                reached = running.wait_for_stage(stage)
                if reached and stage in TRAINING and killed[stage] % 2:
                    # Most of a tiny stage is its start, so every second kill waits for the training. The
                    # uninterrupted run may have been faster, on an idle machine.
                    running.wait_while(
                        stage, 10 * unbroken.seconds[stage], until=partial(has_state, project, stage)
                    )
                    running.wait_while(stage, chance.uniform(0, TRAINING_SECONDS))
                elif reached:
                    running.wait_while(stage, chance.uniform(0, 0.7 * unbroken.seconds[stage]))
                if running.kill():
                    killed[running.running_stage or stage] += 1
                assert "Traceback" not in running.output, running.output
            assert_whole(project)
            cached = set(cached_files(project))
            assert kept <= cached, "the cache has lost an out"
            kept = cached
            resumed[stage] += has_state(project, stage)
            if not reached:  # the stage had ended before the last kill
                again = ("--force", "--single-item")
    print(f"kills: {dict(killed)}; kills with a resume state: {dict(resumed)}")
    assert all(killed[stage] >= kills for stage, kills in KILLS.items())
    assert all(resumed[stage] for stage in TRAINING)

    for left in leftovers(project):  # those of resume states are kept for an hour
        os.utime(left, (0, 0))
    output = project.dvc("repro", "--force", "--single-item", "cabm") + project.dvc("repro")
    assert "up to date" in project.dvc("status"), output
    assert_whole(project)
    assert project.contents(*EXACT) == unbroken.project.contents(*EXACT)
    assert not leftovers(project)
