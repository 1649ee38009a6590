from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.engine.grid import Grid, Storage

alphas = st.floats(2.0**-12, 2.0**12, width=32)
widths = st.integers(2, 8)


@settings(deadline=None)
@given(alphas, widths)
def test_factors_are_those_of_the_simulation(alpha: float, bits: int) -> None:
    grid = Grid(alpha, bits, Storage.SHIFTED)
    levels = torch.tensor([float(grid.levels)])
    clip = torch.tensor([alpha])
    assert float(grid.scale) == float(clip / levels)
    assert float(grid.inverse) == float(levels / clip)


@settings(deadline=None)
@given(alphas, widths)
def test_the_reciprocal_of_the_divisor_is_the_inverse(alpha: float, bits: int) -> None:
    grid = Grid(alpha, bits, Storage.SIGNED)
    if grid.divisor is not None:
        assert grid.divisor.dtype == np.float32
        assert np.float32(1) / grid.divisor == grid.inverse


def test_most_grids_have_a_divisor() -> None:
    grids = [Grid(1 + step / 500, 8, Storage.SIGNED) for step in range(500)]
    assert np.mean([grid.divisor is not None for grid in grids]) > 0.6


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("storage", list(Storage))
def test_codes_fit_in_their_bytes(bits: int, storage: Storage) -> None:
    grid = Grid(1.0, bits, storage)
    limits = np.iinfo(grid.dtype)
    assert limits.min <= grid.low + grid.zero
    assert grid.levels + grid.zero <= limits.max
