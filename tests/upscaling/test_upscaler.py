from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cabm.checkpoints.find import find_model
from cabm.checkpoints.model_files import TABLE_FILE
from cabm.errors import InputError
from cabm.evaluation.bicubic import upscale_bicubic_batch
from cabm.imaging.pixels import upscale_alpha
from cabm.imaging.raster import array_raster, in_memory
from cabm.imaging.reader import open_raster
from cabm.tables.table import EdgeToBitTable
from cabm.tiling.edges import edges_of_image
from cabm.tiling.parts import MARGIN, TileParts
from cabm.upscaling import streaming
from cabm.upscaling.runners import TileRunner
from cabm.upscaling.size import OutputSize
from cabm.upscaling.tiles import TileRun
from cabm.upscaling.upscaler import DEFAULT_OVERLAP, Upscaler
from tests.upscaling.helpers import STRIDE, TILE, photo, tiny_model

KINDS = ("float", "pams", "cadyq", "cabm")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_model(folder / kind, kind)
    for scale in (3, 4):
        tiny_model(folder / f"x{scale}", scale=scale)
    tiny_model(folder / "bypass", bypass=60.0)
    tiny_model(folder / "parts", bypass=80.0, part=8)
    tiny_model(folder / "nothing", bypass=500.0)
    return folder


def image_of(height: int, width: int, channels: int | None, dtype: type) -> np.ndarray:
    """Return a photograph of a shape (height, width), or with a number of channels."""
    image = photo(height, width, channels or 1, dtype)
    return image[..., 0] if channels is None else image


def upscaler(models: Path, name: str = "cabm", engine: str = "float", **options) -> Upscaler:
    return Upscaler.load(models / name, engine=engine, device="cpu", **options)


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    name=st.sampled_from(["cabm", "x3", "bypass", "parts"]),
)
def test_images_of_every_size_and_kind_are_upscaled_by_the_scale(
    models, height, width, channels, dtype, name
):
    image = image_of(height, width, channels, dtype)
    upscaled = upscaler(models, name)(image)
    scale = 3 if name == "x3" else 2
    assert upscaled.shape == (height * scale, width * scale, *image.shape[2:])
    assert upscaled.dtype == dtype


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    factors=st.tuples(st.floats(0.2, 3.9), st.floats(0.2, 3.9)),
)
def test_results_have_the_size_that_is_asked_for(models, height, width, channels, dtype, factors):
    image = image_of(height, width, channels, dtype)
    high, wide = (
        max(1, round(side * factor)) for side, factor in zip((height, width), factors, strict=True)
    )
    upscaled = upscaler(models)(image, size=OutputSize(width=wide, height=high, passes=2))
    assert upscaled.shape == (high, wide, *image.shape[2:])
    assert upscaled.dtype == dtype


def test_a_size_is_what_lanczos_makes_of_the_upscaled_image(models):
    image = photo(50, 64)
    loaded = upscaler(models)
    whole = pyvips.Image.new_from_array(loaded(image)).cast("double")
    expected = whole.resize(96 / 128, vscale=70 / 100, kernel="lanczos3", gap=0).numpy()
    found = loaded(image, size=OutputSize(width=96, height=70))
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 1


def test_the_second_pass_runs_on_the_result_of_the_first(models, tmp_path):
    loaded, image = upscaler(models), photo(30, 41, 4)
    expected = loaded(loaded(image))
    np.testing.assert_array_equal(loaded(image, size=OutputSize(passes=2)), expected)
    raster, counts = array_raster(image), []
    spec = loaded.output_spec(raster, "png", 90, size=OutputSize(passes=2))
    report = loaded.upscale_file(raster, tmp_path / "out" / "a.png", spec, progress=counts.append)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), expected)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert report.plans == tuple(loaded.plans(30, 41, OutputSize(passes=2)))
    assert report.plans == (loaded.plan(30, 41), loaded.plan(60, 82)) and report.target.passes == 2
    assert (
        sum(counts)
        == sum(map(len, report.plans))
        == sum(map(len, loaded.plans(30, 41, OutputSize(passes=2))))
    )
    assert len(report.bits) == len(report.plan) and report.notes == ("the network ran twice",)


def test_costs_cover_both_passes(models, tmp_path):
    loaded, raster = upscaler(models, "bypass"), array_raster(photo(60, 82))
    once, again = (
        loaded.upscale_file(image, tmp_path / "a.png", loaded.output_spec(image, "png", 90))
        for image in (raster, array_raster(loaded(raster.array)))
    )
    spec = loaded.output_spec(raster, "png", 90, size=OutputSize(passes=2))
    twice = loaded.upscale_file(raster, tmp_path / "b.png", spec)
    bits = np.concatenate([once.bits, again.bits])
    assert twice.fab == pytest.approx(bits[bits > 0].mean())
    tiles = len(once.plan), len(again.plan)
    assert twice.bypassed == pytest.approx(np.average([once.bypassed, again.bypassed], weights=tiles))
    areas = [
        report.plan.tile_height * report.plan.tile_width * len(report.plan) for report in (once, again)
    ]
    saved = np.average([once.bitops_saved, again.bitops_saved], weights=areas)
    assert twice.bitops_saved == pytest.approx(saved)


@pytest.mark.parametrize("size", [OutputSize(factor=0.4), OutputSize(factor=1), OutputSize(width=20)])
def test_a_size_that_is_not_larger_needs_no_network(models, tmp_path, size, monkeypatch):
    loaded, raster = upscaler(models), array_raster(photo(40, 50, 4))
    monkeypatch.delattr(type(loaded), "_rows")  # what runs the network
    spec = loaded.output_spec(raster, "png", 90, size=size)
    report = loaded.upscale_file(raster, tmp_path / "a.png", spec)
    written = np.asarray(Image.open(tmp_path / "a.png"))
    np.testing.assert_array_equal(written, loaded(raster.array, size=size))
    assert written.shape == (spec.height, spec.width, 4)
    assert (report.plans, report.bits, report.fab) == ((), None, None)
    assert report.notes == ("not larger than the image: reduced without the network",)
    assert loaded.plans(40, 50, size) == []


def test_a_size_beyond_the_model_is_refused(models):
    with pytest.raises(InputError, match=r"300 x 210 pixels are more than x2 of its 64 x 50; --passes 2"):
        upscaler(models)(photo(50, 64), size=OutputSize(width=300, height=210))


def test_images_of_pillow_and_arrays_of_others_are_taken(models):
    loaded, array = upscaler(models), photo(20, 30)
    expected = loaded(array)
    np.testing.assert_array_equal(loaded(Image.fromarray(array)), expected)
    np.testing.assert_array_equal(loaded(torch.from_numpy(array)), expected)
    palette = Image.fromarray(array).quantize(8)
    np.testing.assert_array_equal(loaded(palette), loaded(np.asarray(palette.convert("RGB"))))
    bits = Image.fromarray(array[..., 0]).convert("1")
    np.testing.assert_array_equal(loaded(bits), loaded(np.asarray(bits.convert("L"))))
    for other in ("photo.png", array.tolist(), None):
        with pytest.raises(TypeError, match="give a NumPy array or an image of Pillow"):
            loaded(other)


def test_images_of_pillow_are_read_as_their_files_are(tmp_path, models):
    """Turned, in CMYK, with a transparent colour, in 16 bits: what an array cannot tell."""
    loaded, rgb = upscaler(models), Image.fromarray(photo(20, 30))
    turned, gray = Image.Exif(), rgb.convert("L")
    turned[274] = 6
    files = [
        ("turned.png", rgb, {"exif": turned}),
        ("cmyk.tif", rgb.convert("CMYK"), {}),
        ("colour.png", rgb, {"transparency": rgb.getpixel((3, 4))}),
        ("gray.png", gray, {"transparency": gray.getpixel((3, 4))}),
        ("palette.png", rgb.quantize(8), {"transparency": 2}),
        ("words.png", Image.fromarray(photo(20, 30, 1, np.uint16)[..., 0]), {}),
    ]
    for name, image, options in files:
        image.save(tmp_path / name, **options)
        expected = loaded(in_memory(open_raster(tmp_path / name)).array)
        found = loaded(Image.open(tmp_path / name))
        np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=name)
        assert (expected.shape[0] > expected.shape[1]) == (name == "turned.png")
    for mode in ("I", "F"):
        with pytest.raises(InputError, match=r"an image of (int|float)32; give uint8"):
            loaded(gray.convert(mode))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["auto", "float"])
def test_models_of_every_kind_upscale(models, kind, engine):
    for size in [(1, 1), (3, 50), (70, 41)]:
        upscaled = upscaler(models, kind, engine)(photo(*size))
        assert upscaled.shape == (2 * size[0], 2 * size[1], 3)


@settings(deadline=None, max_examples=15)
@given(height=st.integers(1, 90), width=st.integers(1, 90), dtype=st.sampled_from([np.uint8, np.uint16]))
def test_overlap_auto_equals_the_image_computed_whole(models, height, width, dtype):
    image = photo(height, width, 3, dtype)
    tiled = upscaler(models, "float", overlap="auto", tile=40)
    assert tiled.tile - tiled.stride >= 2 * tiled.model.receptive_field
    whole = upscaler(models, "float", overlap=0, tile=96)
    difference = tiled(image).astype(int) - whole(image)
    assert np.abs(difference).max() <= (1 if dtype == np.uint8 else 16)


def test_overlap_auto_chooses_tiles_large_enough_for_it(models):
    loaded = upscaler(models, "float", overlap="auto")
    assert loaded.tile >= 2 * (loaded.tile - loaded.stride)
    for name, overlap, expected in [
        ("cabm", "evaluated", (TILE, STRIDE)),
        ("float", "evaluated", (96, 94)),
        ("cabm", DEFAULT_OVERLAP, (TILE, TILE - DEFAULT_OVERLAP)),
    ]:
        loaded = upscaler(models, name, overlap=overlap)
        assert (loaded.tile, loaded.stride) == expected


def test_smooth_parts_of_tiles_are_bicubic_in_either_engine(models):
    image, parts = photo(150, 300), []
    low = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float()
    bicubic = upscale_bicubic_batch(low, 2)[0].permute(1, 2, 0).numpy()
    for engine in ("float", "auto"):
        loaded = upscaler(models, "parts", engine=engine, tile=96)
        trace = streaming.Trace()
        rows = np.concatenate(list(loaded._rows(array_raster(image), trace, None)))
        parts.append(trace.parts)
        smooth = slice(0, 2 * (48 - MARGIN + 1))
        assert np.abs(rows[:, smooth] - bicubic[:, smooth]).max() <= 0.5 + 1e-3
        noisy = slice(2 * 96, None)
        assert np.abs(rows[:, noisy] - bicubic[:, noisy]).mean() > 1
    np.testing.assert_array_equal(parts[0].bypassed, parts[1].bypassed)
    assert 0 < parts[0].share.mean() < parts[0].share.max() < 1


@pytest.mark.parametrize("kind", ["cabm", "bypass", "parts", "float"])
def test_grouping_and_batching_do_not_change_the_result(models, kind, monkeypatch):
    image = photo(101, 130)
    options = {"tile": 96} if kind == "parts" else {}  # smaller tiles are computed whole or bypassed whole
    expected = upscaler(models, kind, **options)(image)
    one_by_one = upscaler(models, kind, **options)
    monkeypatch.setattr(type(one_by_one._chosen), "batch_size", lambda *_: 1)
    monkeypatch.setattr(streaming, "FLIGHT_BYTES", 1)
    difference = expected.astype(int) - one_by_one(image)
    # convolutions of another batch size add in another order
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 1e-3


def test_a_report_says_which_parts_were_bypassed(models, tmp_path):
    loaded = upscaler(models, "parts", tile=96)
    raster = array_raster(photo(150, 300))
    report = loaded.upscale_file(raster, tmp_path / "a.png", loaded.output_spec(raster, "png", 90))
    assert report.bypassed == pytest.approx(report.parts.share.mean())
    assert 0 < report.bypassed < 1 and len(report.parts) == len(report.plan)


@pytest.mark.parametrize("engine", ["float", "auto"])
def test_a_report_has_the_score_and_the_time_of_every_tile(models, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(streaming, "FLIGHT_BYTES", 1)  # several flights
    loaded = upscaler(models, "parts", engine=engine, tile=96)
    raster = array_raster(photo(300, 300))
    report = loaded.upscale_file(raster, tmp_path / "a.png", loaded.output_spec(raster, "png", 90))
    np.testing.assert_array_equal(report.scores, edges_of_image(photo(300, 300), report.plan).scores)
    assert report.tile_seconds.shape == (len(report.plan),) and (report.tile_seconds > 0).all()
    assert report.tile_seconds.sum() < report.seconds["total"] * torch.get_num_threads()


def test_a_report_of_a_model_without_a_table_has_times_but_no_scores(models, tmp_path):
    loaded = upscaler(models, "float")
    raster = array_raster(photo(101, 130))
    report = loaded.upscale_file(raster, tmp_path / "a.png", loaded.output_spec(raster, "png", 90))
    assert report.scores is None and (report.tile_seconds > 0).all()


def test_bits_are_those_of_the_table_for_each_tile(models):
    loaded = upscaler(models)
    raster, trace = array_raster(photo(101, 130)), streaming.Trace()
    list(loaded._rows(raster, trace, None))
    scores = edges_of_image(photo(101, 130), loaded.plan(101, 130)).scores
    np.testing.assert_array_equal(trace.bits, loaded.table.lookup(scores))
    assert len(np.unique(trace.bits)) > 1


def test_cadyq_models_report_the_bits_they_chose(models):
    loaded = upscaler(models, "cadyq")
    trace = streaming.Trace()
    list(loaded._rows(array_raster(photo(50, 200)), trace, None))
    assert trace.bits.shape == (len(loaded.plan(50, 200)), loaded.model.num_adaptive)
    assert set(np.unique(trace.bits)) <= {4, 6, 8}


def test_progress_counts_every_tile(models):
    loaded, counts = upscaler(models, "bypass"), []
    loaded(photo(101, 130), progress=counts.append)
    assert sum(counts) == len(loaded.plan(101, 130))


def test_a_progress_that_fails_stops_all_threads(models):
    if upscaler(models, engine="auto").engine != "int8":
        pytest.skip("one tile at a time is the integer engine's")
    loaded, calls = Upscaler.load(models / "cabm", engine="int8", threads=2), []
    threads, number = threading.active_count(), torch.get_num_threads()

    def stop(tiles):
        calls.append(tiles)
        if tiles:
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop") as error:
        loaded(photo(300, 300), progress=stop)
    assert error.tb is not None  # the traceback keeps the frames and the generators in them alive
    assert calls.count(1) == 1 and calls[-1] == 1
    assert threading.active_count() == threads
    assert torch.get_num_threads() == number


def test_a_progress_can_stop_the_scoring(models):
    def stop(tiles):
        assert tiles == 0
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        upscaler(models)(photo(300, 300), progress=stop)


def test_a_bypassed_image_equals_bicubic_upscaling_of_the_whole_image(models):
    image = photo(90, 75)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    bicubic = upscale_bicubic_batch(x, 2)[0].round().clamp(0, 255).permute(1, 2, 0).numpy()
    difference = np.abs(upscaler(models, "nothing")(image) - bicubic)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 1e-3


@pytest.mark.parametrize(("overlap", "start"), [("evaluated", STRIDE), (6, 2 * (TILE - 6))])
def test_no_seam_shows_between_bypassed_and_computed_tiles(models, overlap, start):
    # noise at the far side of a flat tile: this tile is computed, the one before it is bypassed
    noise_from = start + 16
    image = np.full((60, 90, 3), 90, np.uint8)
    image[:, noise_from:] = np.random.default_rng(0).integers(0, 256, (60, 90 - noise_from, 3))
    loaded = upscaler(models, "bypass", overlap=overlap)
    trace, tile_plan = streaming.Trace(), loaded.plan(60, 90)
    upscaled = np.concatenate(list(loaded._rows(array_raster(image), trace, None))).astype(float)
    column = tile_plan.column_starts.index(start)
    assert trace.bits.any(axis=1)[column - 1 : column + 1].tolist() == [False, True]

    # the network shifts flat areas by some levels, which would show as a step
    first, end = 2 * start, 2 * (start + loaded.tile - loaded.stride)
    flat = upscaled[20:100, : 2 * (noise_from - loaded.model.receptive_field) - 1]
    step = np.abs(flat[:, first - 1] - flat[:, end]).max()
    assert step > 10
    texture = np.abs(np.diff(flat[:, end:], axis=1)).max()  # of the network's result in a flat area
    assert np.abs(np.diff(flat, axis=1)).max() <= texture + 2.5 * step / (end - first)


def test_transparent_pixels_do_not_bleed_into_visible_ones(models):
    image = photo(60, 80, 4)
    white, black = image.copy(), image.copy()
    hidden = image[..., 3] == 0
    white[hidden, :3], black[hidden, :3] = 255, 0
    loaded = upscaler(models)
    np.testing.assert_array_equal(loaded(white), loaded(black))


def test_alpha_is_upscaled_as_a_gray_image_or_with_bicubic(models):
    image = photo(60, 80, 4)
    bicubic = upscale_alpha(image[..., 3], 2)
    both = [upscaler(models, alpha=alpha)(image) for alpha in ("bicubic", "network")]
    np.testing.assert_array_equal(both[0][..., :3], both[1][..., :3])
    np.testing.assert_array_equal(both[0][..., 3], bicubic)
    network = upscaler(models)(image[..., 3])
    flat = (bicubic == 0) | (bicubic == 255)
    np.testing.assert_array_equal(both[1][..., 3], np.where(flat, bicubic, network))
    assert (both[1][..., 3] != bicubic).any()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_alpha_stays_flat_and_costs_nothing(models, value):
    image = photo(60, 80, 4)
    image[..., 3] = value
    trace = streaming.Trace()
    loaded = upscaler(models)
    rows = list(loaded._rows(array_raster(image), trace, None))
    assert (np.concatenate(rows)[..., 3] == value).all()
    assert "alpha" not in trace.seconds


def test_opaque_images_with_alpha_equal_those_without(models):
    image = photo(60, 80)
    opaque = np.concatenate([image, np.full((60, 80, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(upscaler(models)(opaque)[..., :3], upscaler(models)(image))


def test_16_bit_results_match_8_bit_results_with_more_precision(models):
    image = photo(50, 64)
    precise = upscaler(models)(image.astype(np.uint16) * 257)
    difference = precise / 257 - upscaler(models)(image)
    assert np.abs(difference).mean() <= 0.27
    assert np.abs(difference).max() <= 1.51  # where tiles blend, 8-bit values are rounded three times
    assert len(np.unique(precise % 257)) > 100


def test_gray_images_equal_the_luma_of_gray_rgb_ones(models):
    image = photo(50, 64, 1)
    gray = upscaler(models)(image)
    rgb = upscaler(models)(image.repeat(3, axis=2)).astype(float)
    np.testing.assert_allclose(gray[..., 0], rgb @ [0.299, 0.587, 0.114], atol=0.51)
    np.testing.assert_array_equal(upscaler(models)(image[..., 0]), gray[..., 0])


def test_the_input_is_not_modified_and_may_be_read_only(models):
    image = photo(30, 40)
    before = image.copy()
    image.flags.writeable = False
    upscaler(models)(image)
    np.testing.assert_array_equal(image, before)


def test_threads_are_restored(models):
    before = torch.get_num_threads()
    upscaler(models, threads=before + 1)(photo(8, 8))
    assert torch.get_num_threads() == before


def test_tiles_without_surroundings_are_mirrored_at_their_border():
    class Never(TileRunner):
        scale = 2

    tiles = np.random.default_rng(0).integers(0, 256, (3, 3, 8, 9), np.uint8)
    bicubic = TileParts(9, 8, 9, np.ones((3, 1, 1), bool))
    run = TileRun(Never(), tiles, None, batch_size=2, parts=bicubic).complete()
    expected = upscale_bicubic_batch(torch.from_numpy(tiles).float(), 2).round().clamp(0, 255).numpy()
    assert np.abs(run.upscaled - expected).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "quantum"}, "engine 'quantum' is not one of auto, int8, float"),
        ({"device": "tpu"}, "device 'tpu' is not one of auto, cpu, cuda"),
        ({"threads": 0}, "0 threads"),
        ({"overlap": "some"}, "overlap 'some'"),
        ({"overlap": -1}, "overlap -1"),
        ({"tile": 10, "overlap": 10}, "tiles of 10 pixels that overlap by 10"),
        ({"overlap": "auto", "tile": 20}, "give a --tile that is larger than the overlap"),
    ],
)
def test_bad_options_are_refused_in_one_line(models, options, message):
    with pytest.raises(InputError, match=message) as error:
        Upscaler.load(models / "cabm", **options)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(models):
    with pytest.raises(InputError, match="no GPU"):
        Upscaler.load(models / "cabm", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_the_same(models):
    image = photo(101, 130)
    on_gpu = Upscaler.load(models / "float", device="cuda")
    assert on_gpu.engine == "float"
    assert np.abs(on_gpu(image).astype(int) - upscaler(models, "float")(image)).max() <= 1


def test_the_reason_against_the_integer_engine_is_given(models):
    chosen = upscaler(models, "float", "auto")
    assert chosen.engine == "float"
    assert "float model" in chosen.engine_reason
    with pytest.raises(InputError, match="engine int8: a float model"):
        upscaler(models, "float", "int8")
    with pytest.raises(InputError, match="engine int8: a cadyq model"):
        upscaler(models, "cadyq", "int8")


def test_integers_and_simulation_agree(models):
    if upscaler(models, engine="auto").engine != "int8":
        pytest.skip("this machine has no integer units")
    for name in ("cabm", "bypass", "pams"):
        for dtype, levels in ((np.uint8, 0.5), (np.uint16, 0.5 * 257)):
            image = photo(101, 130, dtype=dtype)
            integer = upscaler(models, name, "int8")(image).astype(float)
            assert np.abs(integer - upscaler(models, name)(image)).mean() < levels


def test_a_missing_model_is_one_line(models, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such model directory"):
        Upscaler.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no such model directory and no such packaged model"):
        Upscaler.load("edsr_x9")
    (models / "cabm" / TABLE_FILE).rename(tmp_path / "table")
    try:
        with pytest.raises(InputError, match=f"{TABLE_FILE}: no such file"):
            upscaler(models)
        EdgeToBitTable.load(models / "x4" / TABLE_FILE).save(models / "cabm" / TABLE_FILE)
        with pytest.raises(InputError, match=r"edsr x4 .* does not fit .*edsr x2"):
            upscaler(models)
    finally:
        (tmp_path / "table").replace(models / "cabm" / TABLE_FILE)


def test_packaged_models_are_found_by_name(models, monkeypatch):
    packaged = {name: models / name for name in ("edsr_x4/cabm", "edsr_x4/pams")}
    monkeypatch.setattr("cabm.checkpoints.find.packaged_models", lambda: packaged)
    assert find_model("edsr_x4") == models / "edsr_x4/cabm"
    assert find_model("edsr_x4/pams") == models / "edsr_x4/pams"
