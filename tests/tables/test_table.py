from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.tables.bypass import Bypass
from cabm.tables.observations import Observations
from cabm.tables.rows import STRATEGIES
from cabm.tables.table import EdgeToBitTable
from cabm.tables.table import build_table as build_from

ORIGIN = {
    "backbone": "edsr",
    "scale": 4,
    "search_space": (4, 6, 8),
    "layers": ("body.0.a", "body.0.b", "body.1.a"),
    "tile": 96,
    "stride": 94,
    "source_sha256": "0" * 64,
}


@st.composite
def observed(draw, widths=(4, 6, 8), max_tiles=30):
    """Few distinct scores, so that many rows meet at one."""
    count = draw(st.integers(1, max_tiles))
    score = st.integers(0, 600).map(lambda hundredths: hundredths / 100)
    pool = draw(st.lists(score, min_size=1, max_size=5))
    scores = draw(st.lists(st.sampled_from(pool), min_size=count, max_size=count))
    row = st.lists(st.sampled_from(widths), min_size=3, max_size=3)
    rows = draw(st.lists(row, min_size=count, max_size=count))
    return np.array(scores), np.array(rows)


def build_table(scores, bits, *, strategy="lowest", fab_cap=None, **origin):
    seen = Observations(scores=scores, bits=bits, images=["a"] * len(scores), **origin)
    return build_from(seen, strategy=strategy, fab_cap=fab_cap)


def table(**changes):
    fields = ORIGIN | {
        "strategy": "lowest",
        "thresholds": [1.5, 3.0, 7.25],
        "rows": [[4, 4, 4], [4, 6, 8], [8, 8, 8]],
    }
    return EdgeToBitTable(**fields | changes)


def slow_lookup(table, score):
    """Walk down from the top, as the paper words it."""
    for threshold, row in reversed(list(zip(table.thresholds, table.rows, strict=True))):
        if threshold <= score:
            return row.tolist()
    return table.rows[0].tolist()


@settings(deadline=None)
@given(observed(), st.sampled_from(STRATEGIES), st.lists(st.floats(0, 1e4), max_size=20))
def test_lookup_takes_the_largest_threshold_not_above(seen, strategy, scores):
    built = build_table(*seen, **ORIGIN, strategy=strategy)
    scores += built.thresholds.tolist()
    expected = [slow_lookup(built, score) for score in scores]
    assert built.lookup(scores).tolist() == expected
    assert built.lookup(np.array(scores, np.float64)).tolist() == expected


@settings(deadline=None)
@given(observed())
def test_lowest_and_majority_against_plain_counting(seen):
    scores, bits = seen
    by_score = {}
    for score, row in zip(scores, bits.tolist(), strict=True):
        by_score.setdefault(score, []).append(tuple(row))
    lowest = build_table(scores, bits, **ORIGIN, strategy="lowest")
    majority = build_table(scores, bits, **ORIGIN, strategy="majority")
    for score, rows in by_score.items():
        counts = Counter(rows)
        assert lowest.lookup(score).tolist() == list(
            min(counts, key=lambda row: (sum(row), -counts[row], row))
        )
        assert majority.lookup(score).tolist() == list(
            min(counts, key=lambda row: (-counts[row], sum(row), row))
        )


@settings(deadline=None)
@given(observed(), st.sampled_from(STRATEGIES), st.randoms(use_true_random=False))
def test_the_order_of_observations_does_not_matter(seen, strategy, random):
    scores, bits = seen
    order = list(range(len(scores)))
    random.shuffle(order)
    one = build_table(scores, bits, **ORIGIN, strategy=strategy)
    assert build_table(scores[order], bits[order], **ORIGIN, strategy=strategy) == one


@settings(deadline=None)
@given(observed(widths=(4, 8), max_tiles=12))
def test_monotone_is_the_nearest_non_decreasing_table(seen):
    """Against all non-decreasing sequences of one layer."""
    scores, bits = seen
    origin = ORIGIN | {"search_space": (4, 8)}
    monotone = build_table(scores, bits, **origin, strategy="monotone")
    lowest = build_table(scores, bits, **origin, strategy="lowest")
    distinct, weights = np.unique(scores, return_counts=True)
    target, fitted = lowest.lookup(distinct), monotone.lookup(distinct)
    assert np.all(np.diff(fitted, axis=0) >= 0)
    for layer in range(3):
        costs = {
            sequence: sum(weights * np.abs(np.array(sequence) - target[:, layer]))
            for sequence in itertools.combinations_with_replacement((4, 8), len(distinct))
        }
        best = min(costs, key=lambda sequence: (costs[sequence], sum(sequence)))
        assert tuple(fitted[:, layer]) == best


@settings(deadline=None)
@given(observed(widths=(2, 3, 5, 8)), st.none() | st.floats(2, 9))
def test_monotone_bits_never_fall_and_stay_below_the_cap(seen, cap):
    origin = ORIGIN | {"search_space": (2, 3, 5, 8)}
    try:
        built = build_table(*seen, **origin, strategy="monotone", fab_cap=cap)
    except InputError:
        return
    assert np.all(np.diff(built.rows, axis=0) >= 0)
    assert np.isin(built.rows, (2, 3, 5, 8)).all()
    if cap is not None:
        assert built.rows.mean(axis=1).max() < cap


@settings(deadline=None)
@given(observed(), st.sampled_from(STRATEGIES), st.floats(3, 9))
def test_cap_drops_rows_that_are_not_below_it(seen, strategy, cap):
    scores, bits = seen
    kept = bits.mean(axis=1) < cap
    if not kept.any():
        with pytest.raises(InputError, match=r"fab_cap.*the lowest has"):
            build_table(scores, bits, **ORIGIN, strategy=strategy, fab_cap=cap)
        return
    built = build_table(scores, bits, **ORIGIN, strategy=strategy, fab_cap=cap)
    assert built.rows.mean(axis=1).max() < cap
    if strategy != "monotone":
        without = build_table(scores[kept], bits[kept], **ORIGIN, strategy=strategy)
        assert np.array_equal(built.rows, without.rows)


@settings(deadline=None)
@given(observed(), st.sampled_from(STRATEGIES))
def test_equal_neighbours_are_merged(seen, strategy):
    built = build_table(*seen, **ORIGIN, strategy=strategy)
    assert np.all(np.any(built.rows[1:] != built.rows[:-1], axis=1))
    assert np.array_equal(built.thresholds, np.round(built.thresholds, 2))


def test_save_and_load_give_the_same_table(tmp_path):
    path = tmp_path / "deep" / "edge_to_bit.json"
    info = {"part": 16, "threshold": 1.25, "max_loss_db": 0.01, "loss_db": 0.0081, "share": 0.52}
    original = table(fab_cap=7.5, bypass=Bypass(**info))
    original.save(path)
    loaded = EdgeToBitTable.load(path)
    assert loaded == original
    assert loaded.bypass == Bypass(**info)
    assert loaded.rows.dtype == np.int64
    document = json.loads(path.read_text())
    assert document["format"] == "cabm.edge_to_bit/1"
    assert document["bypass"] == info
    assert "    [4, 6, 8],\n" in path.read_text()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"format": "cabm.edge_to_bit/9"}, "'cabm.edge_to_bit/9'"),
        ({"backbone": None}, "backbone"),
        ({"scale": "4"}, "scale"),
        ({"scale": True}, "scale"),
        ({"surprise": 1}, "surprise"),
        ({"thresholds": [1.5, 3.0, 3.0]}, "3 at position 2 is not above 3"),
        ({"thresholds": [-1.0, 3.0, 4.0]}, "not negative"),
        ({"thresholds": [1.5, float("nan"), 4.0]}, "thresholds.1"),
        ({"thresholds": [1.5, 3.0, float("inf")]}, "thresholds.2"),
        ({"thresholds": [], "rows": []}, "at least one"),
        ({"thresholds": [1.5]}, "3 for 1 thresholds"),
        ({"rows": [[4, 4], [4, 6, 8], [8, 8, 8]]}, "2 bits in row 0, 3 layers"),
        ({"rows": [[4, 4, 4], [4, 5, 8], [8, 8, 8]]}, "5 bits in row 1 for layer body.0.b"),
        ({"rows": [[4, 4, 4], [4, 0, 8], [8, 8, 8]]}, "0 bits in row 1; tables that skip layers"),
        ({"rows": [[4, 4, 4.5], [4, 6, 8], [8, 8, 8]]}, "rows.0.2"),
        ({"rows": [[4, 4, 10**30], [4, 6, 8], [8, 8, 8]]}, "rows.0.2"),
        ({"rows": [[0, 0, 0], [4, 6, 8], [8, 8, 8]]}, "0 bits in row 0; tables that skip layers"),
        ({"search_space": [8, 4]}, "search space"),
        ({"search_space": []}, "search space"),
        ({"search_space": [0, 4, 6, 8]}, "search space [0, 4, 6, 8]"),
        ({"bypass": {"threshold": 1.5, "loss_db": 0.0}}, "bypass.part: Field required"),
        ({"contrast_limit": 0.0}, "contrast_limit: Input should be greater than 0"),
        ({"operator": "sobel"}, "'sobel'"),
    ],
)
def test_bad_files_give_one_line_that_names_them(tmp_path, change, found):
    path = tmp_path / "bad.json"
    table().save(path)
    document = json.loads(path.read_text()) | change
    path.write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        EdgeToBitTable.load(path)
    assert found in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["rows", "layers", "bypass"])
def test_missing_fields_are_named(tmp_path, missing):
    path = tmp_path / "bad.json"
    table().save(path)
    document = json.loads(path.read_text())
    del document[missing]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"{missing}: Field required"):
        EdgeToBitTable.load(path)


def test_a_contrast_limit_is_kept_and_files_without_one_stay_as_they_were(tmp_path):
    path = tmp_path / "edge_to_bit.json"
    table(contrast_limit=65.0).save(path)
    assert EdgeToBitTable.load(path).contrast_limit == 65
    table().save(path)
    assert "contrast" not in path.read_text()
    assert EdgeToBitTable.load(path) == table() != table(contrast_limit=65.0)


@pytest.mark.parametrize("text", ["", "[1]", "{", "null", '{"format": 3}'])
def test_files_that_are_not_tables_are_refused(tmp_path, text):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.json"):
        EdgeToBitTable.load(path)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.01])
def test_invalid_scores_are_refused(score):
    with pytest.raises(ValueError, match="finite and not negative"):
        table().lookup([1.0, score])
    with pytest.raises(ValueError, match="finite and not negative"):
        build_table([1.0, score], [[4, 4, 4]] * 2, **ORIGIN)


def test_check_names_both_models():
    good = {"backbone": "edsr", "scale": 4, "layers": list(ORIGIN["layers"])}
    table().check(**good)
    for wrong in ({"backbone": "idn"}, {"scale": 2}, {"layers": ["a"] * 24}):
        other = good | wrong
        with pytest.raises(InputError) as caught:
            table().check(**other)
        assert "edsr x4 with 3 adaptive layers" in str(caught.value)
        assert f"{other['backbone']} x{other['scale']} with {len(other['layers'])}" in str(caught.value)


def test_check_refuses_widths_that_the_model_lacks():
    fit = {"backbone": "edsr", "scale": 4, "layers": list(ORIGIN["layers"])}
    table().check(**fit, search_space=(2, 4, 6, 8))
    with pytest.raises(InputError, match=r"widths \[4, 6, 8\] .* search space \[4, 8\]"):
        table().check(**fit, search_space=(4, 8))


def test_describe_is_json_and_counts_bits():
    summary = table(rows=[[4, 4, 4], [4, 6, 8], [8, 8, 8]]).describe()
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["fab_lowest"], summary["fab_highest"]) == (4, 8)
    assert [entry["fab"] for entry in summary["by_score"]] == [4, 6, 8]
    assert summary["by_score"][1] == {
        "from": 3.0,
        "to": 7.25,
        "fab": 6.0,
        "layers_by_bits": {"4": 1, "6": 1, "8": 1},
    }


def test_tables_are_immutable():
    rows = np.array([[4, 4, 4], [4, 6, 8], [8, 8, 8]])
    built = table(rows=rows)
    rows[0] = 8
    assert built.lookup(0.0).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match="read-only"):
        built.rows[0] = 8


def test_observations_rebuild_a_table_without_the_network(tmp_path):
    path, again = tmp_path / "observations.npz", tmp_path / "again.npz"
    random = np.random.default_rng(0)
    seen = Observations(
        scores=random.uniform(0, 30, 200),
        bits=random.choice([4, 6, 8], (200, 3)),
        images=["0801.png"] * 120 + ["bäume.png"] * 80,
        part=8,
        measures={"gain": random.normal(size=(200, 3, 3))},
        **ORIGIN,
    )
    seen.save(path)
    seen.save(again)
    assert path.read_bytes() == again.read_bytes()
    loaded = Observations.load(path)
    assert loaded.origin == ORIGIN
    assert np.array_equal(loaded.images, seen.images)
    assert np.array_equal(loaded.measures["gain"], seen.measures["gain"])
    for strategy in STRATEGIES:
        expected = build_table(seen.scores, seen.bits, **ORIGIN, strategy=strategy)
        assert build_table(loaded.scores, loaded.bits, **loaded.origin, strategy=strategy) == expected


def test_observations_of_a_model_that_skipped_layers_are_refused(tmp_path):
    origin = ORIGIN | {"search_space": (4, 8)}
    Observations(scores=[1.0], bits=[[4, 8, 8]], images=["a"], **origin).save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as new:
        arrays = dict(new)
    arrays["header"] = np.array(str(arrays["header"]).replace("[4, 8]", "[0, 8]"))
    np.savez(tmp_path / "old.npz", **arrays)
    with pytest.raises(InputError, match=r"old\.npz: .*search space \[0, 8\].*run edge_to_bit again"):
        Observations.load(tmp_path / "old.npz")


def test_broken_observations_are_named(tmp_path):
    path = tmp_path / "observations.npz"
    with pytest.raises(InputError, match="no such file"):
        Observations.load(path)
    Observations(scores=[1.0], bits=[[4, 6, 8]], images=["a"], **ORIGIN).save(path)
    whole = path.read_bytes()
    entry = whole.index(b"PK\x01\x02")  # of the archive's directory
    later_version = whole[: entry + 6] + b"\xff\x00" + whole[entry + 8 :]
    encrypted = whole[: entry + 8] + b"\x01\x00" + whole[entry + 10 :]
    damaged = (b"", b"nonsense", whole[: len(whole) // 2], whole[:300] + b"xx" + whole[302:])
    for broken in (*damaged, later_version, encrypted):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"observations\.npz"):
            Observations.load(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"observations\.npz"):
        Observations.load(path)
