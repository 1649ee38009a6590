from __future__ import annotations

import pickle
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cabm.errors import InputError
from cabm.upscaling.size import AS_COMPUTED, OutputSize

sides = st.integers(1, 5000)


@settings(deadline=None)
@given(sides, sides, st.sampled_from([2, 3, 4]), st.sampled_from([1, 2]))
def test_without_a_size_the_result_is_as_the_model_makes_it(height, width, scale, passes):
    target = OutputSize(passes=passes).target(height, width, scale)
    assert (
        (target.height, target.width) == target.computed == (height * scale**passes, width * scale**passes)
    )
    assert target.passes == passes and not target.is_reduced


@settings(deadline=None, max_examples=300)
@given(
    sides,
    sides,
    st.sampled_from(["width", "height", "max_side"]),
    st.integers(1, 20_000),
    st.sampled_from([2, 3, 4]),
)
def test_one_side_is_exact_and_the_other_keeps_the_aspect(height, width, way, side, scale):
    size = OutputSize(**{way: side})
    given_side = {"width": width, "height": height, "max_side": max(height, width)}[way]
    factor = Fraction(side, given_side)
    if way == "max_side":
        factor = min(factor, Fraction(scale))  # a limit: the model makes no more
    elif factor > scale:
        with pytest.raises(InputError, match="--passes 2"):
            size.target(height, width, scale)
        return
    target = size.target(height, width, scale)
    for found, original in ((target.height, height), (target.width, width)):
        assert found == 1 or abs(found - original * factor) <= Fraction(1, 2)
    if way != "max_side":
        assert getattr(target, way) == side
    assert max(target.height, target.width) <= side or way != "max_side"
    assert target.passes == int(factor > 1)


@settings(deadline=None)
@given(sides, sides, st.floats(0.01, 16), st.sampled_from([2, 3, 4]))
def test_a_factor_is_reached_in_as_few_passes_as_possible(height, width, factor, scale):
    size = OutputSize(factor=factor, passes=2)
    if factor > scale**2:
        with pytest.raises(InputError, match="choose a smaller size"):
            size.target(height, width, scale)
        return
    target = size.target(height, width, scale)
    assert abs(target.height - height * factor) <= 0.5 or target.height == 1
    assert abs(target.width - width * factor) <= 0.5 or target.width == 1
    assert target.computed == (height * scale**target.passes, width * scale**target.passes)
    assert target.computed[0] >= target.height and target.computed[1] >= target.width
    fewer = scale ** (target.passes - 1) if target.passes else 0
    assert target.height > height * fewer or target.width > width * fewer


def test_both_sides_are_taken_as_they_are():
    target = OutputSize(width=90, height=41).target(40, 50, 2)
    assert (target.height, target.width, target.passes) == (41, 90, 1)
    with pytest.raises(InputError, match=r"101 x 41 pixels are more than x2 of its 50 x 40; --passes 2"):
        OutputSize(width=101, height=41).target(40, 50, 2)
    with pytest.raises(InputError, match=r"201 x 41 pixels are more than x4 .*; choose a smaller size"):
        OutputSize(width=201, height=41, passes=2).target(40, 50, 2)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (AS_COMPUTED, "x4"),
        (OutputSize(passes=2), "x16"),
        (OutputSize(factor=2.5), "x2.5"),
        (OutputSize(factor=2), "x2"),
        (OutputSize(width=3840, height=2160), "3840x2160"),
        (OutputSize(width=3840), "w3840"),
        (OutputSize(height=2160, passes=2), "h2160"),
        (OutputSize(max_side=2048), "max2048"),
    ],
)
def test_a_name_tells_the_size(size, name):
    assert size.name(4) == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "factor": 2}, "given by width and height and by factor"),
        ({"factor": 2, "max_side": 9}, "given by factor and by max-side"),
        ({"height": 0}, "height 0: give at least 1 pixel"),
        ({"max_side": -5}, "max-side -5"),
        ({"factor": 0.0}, "factor 0.0: give a number above 0"),
        ({"factor": float("nan")}, "factor nan"),
        ({"factor": float("inf")}, "factor inf"),
        ({"passes": 3}, "passes 3: the model runs once or twice"),
        ({"passes": 0}, "passes 0"),
    ],
)
def test_impossible_sizes_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        OutputSize(**values)


def test_a_factor_is_checked_before_any_image_is_read():
    with pytest.raises(InputError, match=r"factor 6: the model upscales x4; --passes 2 .* up to x16"):
        OutputSize(factor=6).check(4)
    OutputSize(factor=6, passes=2).check(4)


def test_a_size_can_be_sent_to_another_process():
    size = OutputSize(factor=2.5, passes=2)
    assert pickle.loads(pickle.dumps(size)) == size
