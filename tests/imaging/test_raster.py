from __future__ import annotations

import numpy as np
import pytest

from cabm.errors import InputError
from cabm.imaging.raster import array_raster, in_memory
from tests.upscaling.helpers import photo


def test_blocks_are_the_rows_of_the_array():
    array = photo(33, 20, 4, np.uint16)
    raster = array_raster(array)
    assert (raster.height, raster.width, raster.channels, raster.dtype) == (33, 20, 4, np.uint16)
    assert [len(block) for block in raster.blocks(10)] == [10, 10, 10, 3]
    np.testing.assert_array_equal(in_memory(raster).array, array)


def test_arrays_of_another_shape_or_type_are_refused():
    for array in (np.zeros((3, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)):
        with pytest.raises(InputError, match="is not an image"):
            array_raster(array)
    with pytest.raises(InputError, match="float32"):
        array_raster(np.zeros((3, 4, 3), np.float32))
