"""One row of bits for all tiles: the least noise for a budget, and tables made of it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.tables.constant import least_noise_row
from cabm.tables.observations import Observations
from cabm.tables.table import build_table

WIDTHS = (3, 4, 6)
ORIGIN = {"backbone": "edsr", "scale": 2, "search_space": WIDTHS, "tile": 48, "stride": 46}


@given(
    st.integers(1, 4).flatmap(
        lambda layers: st.lists(st.tuples(*[st.floats(0, 9)] * 3), min_size=layers, max_size=layers)
    ),
    st.floats(3, 7),
)
def test_no_other_row_within_the_budget_has_less_noise(noise, cap):
    noise = np.array(noise)
    row = least_noise_row(noise, WIDTHS, cap)
    assert row.mean() <= cap + 1e-9

    def total(of_row):
        return sum(noise[layer, WIDTHS.index(width)] for layer, width in enumerate(of_row))

    rows = [row for row in product(WIDTHS, repeat=len(noise)) if np.mean(row) <= cap]
    assert total(row.tolist()) == pytest.approx(min(map(total, rows)))


def test_of_equal_rows_the_one_with_the_fewest_bits_is_taken():
    assert least_noise_row(np.zeros((3, 3)), WIDTHS, 6.0).tolist() == [3, 3, 3]


def test_the_noisiest_layer_gets_the_bits():
    noise = np.array([[1.0, 0.5, 0.0], [9.0, 4.0, 0.0], [1.0, 0.5, 0.0]])
    assert least_noise_row(noise, WIDTHS, 4.0).tolist() == [3, 6, 3]


def test_a_cap_below_the_narrowest_width_is_refused():
    with pytest.raises(
        InputError, match=r"fab_cap 2\.5: the narrowest width of the search space is 3 bits"
    ):
        least_noise_row(np.zeros((2, 3)), WIDTHS, 2.5)


def seen(**more):
    bits = [[3, 6], [6, 6], [4, 3]]
    return Observations(
        scores=[1.0, 20.0, 30.0], bits=bits, images=["a"] * 3, layers=("one", "two"), **ORIGIN, **more
    )


def test_a_constant_table_has_one_row_within_the_selectors_mean_bits(tmp_path):
    noise = np.array([[2.0, 1.0, 0.0], [8.0, 7.0, 0.0]])
    seen(noise=noise).save(tmp_path / "seen.npz")
    table = build_table(Observations.load(tmp_path / "seen.npz"), strategy="constant")
    assert table.rows.tolist() == [[3, 6]]  # of 28/6 bits on average, as observed, at most
    assert table.lookup([0.0, 500.0]).tolist() == [[3, 6], [3, 6]]
    assert build_table(seen(noise=noise), strategy="constant", fab_cap=6.0).rows.tolist() == [[6, 6]]


def test_a_constant_table_needs_measured_noise(tmp_path):
    seen().save(tmp_path / "seen.npz")
    with pytest.raises(InputError, match="have no noise of layers; run the stage edge_to_bit"):
        build_table(Observations.load(tmp_path / "seen.npz"), strategy="constant")


@pytest.mark.parametrize("noise", [np.zeros((2, 2)), np.full((2, 3), np.nan)])
def test_noise_that_does_not_fit_is_refused(noise):
    with pytest.raises(ValueError, match="noise"):
        seen(noise=noise)
