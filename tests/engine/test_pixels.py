from __future__ import annotations

import numpy as np
import pytest

from cabm.engine import pixels


@pytest.fixture(params=["compiled", "NumPy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "NumPy":
        monkeypatch.setattr(pixels, "compiled", lambda: None)
    elif pixels.compiled() is None:
        pytest.skip("numba fails here")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (33, 31, 3)])
def test_values_are_rounded_half_to_even_and_clipped(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    values = random.uniform(-40, 300, shape).astype(np.float32)
    values[0, 0] = (0.5, 1.5, 254.5)
    out = np.empty(shape, np.uint8)
    pixels.to_pixels(values, out)
    np.testing.assert_array_equal(out, np.round(values).clip(0, 255))
