from __future__ import annotations

import numpy as np
import pytest
import torch

from cabm.upscaling import engine_choice
from cabm.upscaling.tiles import super_resolve
from cabm.upscaling.torch_runners import HalfRunner, ModelRunner
from cabm.upscaling.upscaler import Upscaler
from tests.models.helpers import BACKBONES, small_model
from tests.upscaling.helpers import photo, tiny_model


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


@pytest.mark.parametrize("kind", ["float", "pams", "cabm"])
def test_the_code_for_gpus_gives_the_image_of_the_cpu(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(engine_choice, "gpu", lambda: torch.device("cpu"))  # the same code on the CPU
    directory = tiny_model(tmp_path / "m", kind, bypass=3.0, part=8)
    on_gpu = Upscaler.load(directory, device="cuda")
    assert isinstance(on_gpu._chosen.runner, HalfRunner)
    image = photo(70, 90)
    image[:30, :30] = 128  # bypassed, where a table says so
    off = on_gpu(image).astype(int) - Upscaler.load(directory, device="cpu", engine="float")(image)
    assert np.abs(off).mean() < 0.25
    if kind == "cabm":
        assert (off[:40, :40] == 0).all()


@pytest.mark.parametrize("kind", ["cadyq"])
def test_models_that_select_widths_are_simulated_on_gpus(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(engine_choice, "gpu", lambda: torch.device("cpu"))
    assert isinstance(
        Upscaler.load(tiny_model(tmp_path / "m", kind), device="cuda")._chosen.runner, ModelRunner
    )
