from __future__ import annotations

import numpy as np
import pytest

from cabm.tiling.parts import TileParts
from cabm.upscaling.trace import seconds_by_bits

BITS = np.array([[4, 4], [8, 8], [4, 5], [0, 0], [8, 8]])
SECONDS = np.array([1.0, 3.0, 2.0, 9.0, 5.0])


def test_tiles_are_counted_by_their_mean_bits() -> None:
    assert seconds_by_bits(BITS, SECONDS, None) == {4: (2, 1.5), 8: (2, 4.0)}


def test_the_time_is_that_of_a_tile_without_bypassed_parts() -> None:
    bypassed = np.zeros((5, 2, 2), dtype=bool)
    bypassed[3] = True
    bypassed[4, 1] = True
    parts = TileParts(48, 96, 96, bypassed)
    found = seconds_by_bits(BITS, SECONDS, parts)
    assert found[4] == (2, 1.5)
    count, seconds = found[8]
    assert count == 2 and seconds == pytest.approx(8 / (1 + parts.work[4])) and parts.work[4] < 1
