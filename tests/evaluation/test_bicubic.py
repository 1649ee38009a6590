from __future__ import annotations

import numpy as np
import pytest
import torch

from cabm.evaluation.bicubic import upscale_bicubic_batch
from cabm.imaging.resize import upscale_bicubic
from tests.imaging.helpers import naive, noise, smooth


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (4, 3)])
def test_a_batch_equals_the_naive_version_without_rounding(scale, shape):
    low = noise(2, 3, *shape, seed=5)
    batch = upscale_bicubic_batch(torch.from_numpy(low).double(), scale)
    assert batch.shape == (2, 3, shape[0] * scale, shape[1] * scale)
    expected = naive(low[1, 2], shape[0] * scale, shape[1] * scale, rounded=False)
    np.testing.assert_allclose(batch[1, 2], expected, rtol=0, atol=1e-9)
    single = upscale_bicubic_batch(torch.from_numpy(low).float(), scale)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, batch, rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_batch_differs_from_the_exact_resize_by_its_two_roundings(scale):
    low = smooth(21, 26)
    batch = upscale_bicubic_batch(torch.from_numpy(low).double()[None, None], scale)[0, 0].numpy()
    assert np.abs(batch - upscale_bicubic(low, scale)).max() < 1.5


def test_a_scale_of_one_copies_a_batch():
    batch = torch.rand(1, 3, 4, 5)
    copy = upscale_bicubic_batch(batch, 1)
    assert torch.equal(copy, batch)
    assert copy.data_ptr() != batch.data_ptr()
