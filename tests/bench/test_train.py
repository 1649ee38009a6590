"""Timings of training steps: the rows and their ratios, not the times."""

from __future__ import annotations

import pytest

from cabm.bench.train import training_steps
from cabm.quant import KINDS


@pytest.mark.slow
def test_rows_are_ratios_to_the_plain_step_of_the_same_run():
    rows = training_steps("idn", 4, rounds=1, steps=1)
    assert [row.name for row in rows] == ["unit (float, fp32 eager)", "unit, freed memory kept", *KINDS]
    assert rows[0].units == 1
    for row in rows:
        assert row.units == pytest.approx(row.seconds / rows[0].seconds)
        assert row.seconds > 0
