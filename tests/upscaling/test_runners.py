from __future__ import annotations

import numpy as np
import pytest

from cabm.upscaling.runners import ModelRunner
from cabm.upscaling.tiles import super_resolve
from tests.models.helpers import BACKBONES, small_model
from tests.upscaling.helpers import photo


@pytest.mark.parametrize("options", [{}, {"replicate_tail": True}])
def test_collapsed_tails_change_nothing(options):
    model = small_model("edsr", options=options)
    plain, collapsing = ModelRunner(model), ModelRunner(model, collapse_tail=True)
    # a tail that pads with zeros collapses for tiles inside the image only
    assert collapsing.splits_border == (not options)
    assert not plain.splits_border
    image = photo(70, 90)
    arguments = {"tile": 24, "stride": 20, "batch_size": 3}
    expected = super_resolve(plain, image, **arguments).image.astype(int)
    assert np.abs(super_resolve(collapsing, image, **arguments).image - expected).max() <= 1


@pytest.mark.parametrize("backbone", BACKBONES)
def test_tiles_that_overlap_by_the_receptive_field_equal_the_whole_image(backbone):
    model = small_model(backbone)
    runner, image = ModelRunner(model, collapse_tail=True), photo(80, 70)
    overlap = 2 * model.receptive_field + 8
    multiple = model.size_multiple
    tile = -(-(overlap + 16) // multiple) * multiple
    assert tile < 80
    arguments = {"size_multiple": multiple, "batch_size": 2}
    tiled = super_resolve(runner, image, tile=tile, stride=tile - overlap, **arguments)
    assert len(tiled.plan) > 1
    whole = super_resolve(runner, image, tile=None, **arguments)
    assert np.abs(tiled.image.astype(int) - whole.image).max() <= 1
