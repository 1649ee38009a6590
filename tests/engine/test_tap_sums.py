"""Convolutions by sums of taps, by loops of all registers that this CPU has."""

from __future__ import annotations

import numpy as np
import pytest

from cabm.engine import tap_sums
from cabm.engine.float_rows import pixels_together
from cabm.engine.pixel_conv import FEATURES
from cabm.engine.tap_sums import pack_taps

from .helpers import require_registers
from .test_float_winograd import direct, numbers, shuffled


@pytest.fixture(params=sorted(FEATURES))
def lanes(request: pytest.FixtureRequest) -> int:
    return require_registers(FEATURES, request.param)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 2), (22, 31)], ids=str)
@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("outputs", [3, 12])
@pytest.mark.parametrize("shuffle", [1, 2, 3])
def test_it_equals_the_direct_sums(
    lanes: int, size: tuple[int, int], kernel: int, outputs: int, shuffle: int
) -> None:
    """The input goes through a PixelShuffle first."""
    weight, bias = numbers(outputs, 10, kernel, kernel), numbers(outputs)
    x = numbers(*size, 10 * shuffle**2)
    wanted = direct(shuffled(x, shuffle), weight, bias)
    ordered = np.ascontiguousarray(pixels_together(x.transpose(2, 0, 1), shuffle).transpose(1, 2, 0))
    conv = pack_taps(weight, bias, shuffle=shuffle, lanes=lanes)
    assert conv is not None
    found = conv(ordered)
    assert found.shape == wanted.shape and found.dtype == np.float32 and found.flags.c_contiguous
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [(0, 14), (0, 3), (4, 11), (13, 14)], ids=str)
def test_a_part_of_the_rows_is_the_same_as_in_the_whole(lanes: int, rows: tuple[int, int]) -> None:
    """The input is a part of wider memory."""
    conv = pack_taps(numbers(3, 5, 5, 5), numbers(3), shuffle=2, lanes=lanes)
    assert conv is not None
    x, (first, last) = numbers(14, 11, 32)[:, :9, :20], rows
    out = np.empty((2 * (last - first), 18, 3), np.float32)
    assert conv(x, first, last, out=out) is out
    np.testing.assert_array_equal(out, conv(x.copy())[2 * first : 2 * last])


def test_where_no_loop_runs_there_is_none(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv = pack_taps(numbers(3, 8, 3, 3), numbers(3), lanes=lanes)
    assert conv is not None
    monkeypatch.setattr(tap_sums, "compiled", lambda lanes: None)
    assert pack_taps(numbers(3, 8, 3, 3), numbers(3)) is None
    with pytest.raises(RuntimeError, match="runs here"):
        conv(numbers(4, 4, 8))
