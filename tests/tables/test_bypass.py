"""The choice of a bypass, and tables that have one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.tables.bypass import choose_bypass
from cabm.tables.observations import Observations
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edges_of_image
from cabm.tiling.parts import TileParts
from cabm.tiling.plan import plan
from tests.tables.helpers import bypass_table, half_smooth


def test_a_table_assigns_no_bits_to_tiles_without_computed_parts():
    image = half_smooth(48, 150)
    table = bypass_table()
    tile_plan = plan(48, 150, 48, 42)
    bits, parts = table.assign(edges_of_image(image, tile_plan, table.part), tile_plan)
    assert parts.bypassed[0].all() and bits[0].tolist() == [0, 0]
    assert not parts.bypassed[-1].any() and bits[-1].tolist() == [6, 8]
    mixed = parts.entered & parts.bypassed.any(axis=(1, 2))
    assert mixed.any() and bits[mixed].all()
    assert 0 < parts.share[mixed][0] < 1


def test_a_bypass_is_saved_loaded_and_checked(tmp_path):
    table = bypass_table()
    table.save(tmp_path / "table.json")
    loaded = EdgeToBitTable.load(tmp_path / "table.json")
    assert loaded == table and loaded.part == 8
    assert replace(table, bypass=None).part is None
    text = (tmp_path / "table.json").read_text()
    for wrong in ('"part": 12', '"part": "8"', '"part": 0', '"part": 8.0', '"part": true'):
        (tmp_path / "table.json").write_text(text.replace('"part": 8', wrong))
        with pytest.raises(InputError, match=r"table\.json: bypass\.part: "):
            EdgeToBitTable.load(tmp_path / "table.json")
    for wrong in ('"threshold": -1.0', '"threshold": "5"', '"threshold": null', '"threshold": true'):
        (tmp_path / "table.json").write_text(text.replace('"threshold": 5.0', wrong))
        with pytest.raises(InputError, match=r"table\.json: bypass\.threshold: "):
            EdgeToBitTable.load(tmp_path / "table.json")


def observed(peaks, network, bicubic) -> Observations:
    measures = {"peaks": peaks, "network_sse": network, "bicubic_sse": bicubic}
    measures["samples"] = np.ones_like(np.asarray(peaks, float))
    return Observations(
        scores=np.ones(len(peaks)),
        bits=np.full((len(peaks), 1), 4),
        images=["a"] * len(peaks),
        backbone="edsr",
        scale=2,
        search_space=(4, 6, 8),
        layers=("a",),
        tile=16,
        stride=14,
        part=8,
        measures=measures,
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.001, 3), st.floats(0.01, 5))
def test_the_threshold_is_the_highest_within_the_budgets(seed, max_loss, max_tile_loss):
    random = np.random.default_rng(seed)
    peaks = random.permutation(20).reshape(5, 2, 2)
    network = random.uniform(50, 100, peaks.shape)
    bicubic = network * random.uniform(0.95, 1 + 0.05 * peaks)
    expected = None
    for threshold in range(1, 20):
        left_out = TileParts(8, 16, 16, peaks < threshold).left_out
        mixed = np.where(left_out, bicubic, network)
        tiles = 10 * np.log10((mixed.sum((1, 2)) + 1) / (network.sum((1, 2)) + 1))
        if tiles.max() > max_tile_loss:
            break
        loss = 10 * np.log10((mixed.sum() + 1) / (network.sum() + 1))
        if loss <= max_loss:
            expected = (threshold, loss, left_out.mean())
    seen = observed(peaks, network, bicubic)
    found = choose_bypass(seen, max_loss_db=max_loss, max_tile_loss_db=max_tile_loss)
    if expected is None:
        assert found is None
    else:
        assert (found.threshold, found.loss_db, found.share) == pytest.approx(expected)
        assert found.tile_loss_db <= max_tile_loss


def test_no_budget_means_no_bypass_and_missing_measures_are_named():
    peaks = np.arange(8.0).reshape(2, 2, 2)
    seen = observed(peaks, np.ones_like(peaks), np.ones_like(peaks))
    assert choose_bypass(seen, max_loss_db=0, max_tile_loss_db=1) is None
    assert choose_bypass(seen, max_loss_db=0.1, max_tile_loss_db=1).threshold == 7
    del seen.measures["samples"]
    with pytest.raises(InputError, match="observations without samples: run edge_to_bit again"):
        choose_bypass(seen, max_loss_db=0.1, max_tile_loss_db=1)
