from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from cabm.engine import compile_model, elementwise, fused, supports
from cabm.engine.grid import Grid
from cabm.engine.onednn import IntegerConv
from cabm.errors import InputError
from cabm.models import Backbone
from cabm.quant.layers import QuantConv2d

from .helpers import BACKBONES, CHOICES, Engine, calibrated, needs_units, photograph, row, simulated

pytestmark = needs_units

WIDTHS = [4, 6, 8, "mixed"]


def close(model: Backbone, tiles: torch.Tensor, bits: torch.Tensor | None, level: float) -> None:
    """Check that the mean difference to the simulation is at most ``level``."""
    wanted = simulated(model, tiles, bits)
    found = Engine(model, float_dtype=torch.float32).run(tiles, bits, dtype=np.float32)
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().mean()) <= level
    rounded = Engine(model, float_dtype=torch.float32).run(tiles, bits)
    assert rounded.dtype == torch.uint8
    difference = rounded.float() - wanted.round().clamp(0, 255)
    assert float(difference.abs().mean()) <= level


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_agrees_with_the_simulation(backbone: str, scale: int, bits: int | str) -> None:
    model = calibrated(backbone, scale=scale)
    tiles = photograph(19, 26, count=3, seed=5)
    close(model, tiles, row(model, bits, count=3), 0.05)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 17), (5, 4), (33, 31)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_agrees_on_odd_and_tiny_tiles(backbone: str, size: tuple[int, int]) -> None:
    model = calibrated(backbone, scale=4)
    close(model, photograph(*size, count=2, seed=6), row(model, "mixed", count=2), 0.05)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_agrees_in_the_float_type_of_this_machine(backbone: str) -> None:
    model = calibrated(backbone)
    tiles, bits = photograph(24, 24, seed=7), row(model, "mixed")
    wanted = simulated(model, tiles, bits)
    found = Engine(model).run(tiles, bits, dtype=np.float32)
    # with random weights the result is not like the image, so bfloat16 rounds more than a small difference
    assert float((found - wanted).abs().mean()) <= 0.3


@pytest.mark.parametrize("kind", ["pams", "cadyq"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_runs_the_other_kinds(backbone: str, kind: str) -> None:
    model = calibrated(backbone, kind)
    tiles = photograph(20, 18, seed=8)
    engine = Engine(model, float_dtype=torch.float32)
    if kind == "pams":
        wanted, bits = simulated(model, tiles, None), None
    else:  # at the bits of its selectors
        with torch.inference_mode():
            output = model(tiles.float())
        wanted, bits = output.sr, output.bits
    found = engine.run(tiles, bits, dtype=np.float32)
    assert float((found - wanted).abs().mean()) <= 0.05


@pytest.mark.parametrize("weight_bits", [4, "same"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_runs_weights_of_other_widths(backbone: str, weight_bits: int | str) -> None:
    model = calibrated(backbone, weight_bits=weight_bits)
    close(model, photograph(20, 18, count=2, seed=9), row(model, "mixed", count=2), 0.05)


@pytest.mark.parametrize(
    "choices",
    [*({name: value} for name, value in CHOICES.items()), CHOICES, {"weight_bits": "same"} | CHOICES],
    ids=str,
)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_runs_every_choice_of_quantizer(backbone: str, choices: dict) -> None:
    model = calibrated(backbone, search_space=(2, 4, 8), **choices)
    close(model, photograph(20, 18, count=3, seed=9), row(model, "mixed", count=3), 0.05)


def test_runs_scaled_residuals() -> None:
    model = calibrated("edsr", options={"res_scale": 0.1})
    close(model, photograph(20, 18, seed=10), row(model, "mixed"), 0.05)


@pytest.mark.parametrize("choices", [{}, CHOICES], ids=["released", "chosen"])
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_layer_reads_the_simulations_codes(
    backbone: str, bits: int | str, choices: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each layer the simulation's codes; the next layer must then read the simulation's codes."""
    model = calibrated(backbone)
    tiles, assigned = photograph(40, 37, seed=11), row(model, bits)
    reference = codes_read(model, tiles, assigned)
    position = iter(reference)
    shares = []

    plain = IntegerConv._run

    def forced(self: IntegerConv, x: torch.Tensor, grid: Grid, *arguments: object) -> torch.Tensor:
        wanted = (next(position) + grid.zero).to(x.dtype)
        shares.append(float((x != wanted).float().mean()))
        return plain(self, wanted.contiguous(memory_format=torch.channels_last), grid, *arguments)

    monkeypatch.setattr(IntegerConv, "_run", forced)
    monkeypatch.setattr(fused, "compiled", lambda **_: None)
    Engine(model).run(tiles, assigned, threads=1)
    assert len(shares) == len(reference)
    assert max(shares) <= 1e-4


def codes_read(model: Backbone, tiles: torch.Tensor, bits: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the inputs of the simulation's quantized convolutions, in the engine's order."""
    codes = []

    def record(name: str):
        def hook(module: torch.nn.Module, arguments: tuple) -> None:
            # the engine runs IDN's third and sixth convolutions in two parts
            halved = model.name == "idn" and name.endswith(("conv3", "conv6"))
            codes.extend([arguments[0].codes] * (2 if halved else 1))

        return hook

    hooks = [
        module.register_forward_pre_hook(record(name))
        for name, module in model.named_modules()
        if isinstance(module, QuantConv2d)
    ]
    simulated(model, tiles, bits)
    for hook in hooks:
        hook.remove()
    return codes


def test_a_tile_does_not_depend_on_other_tiles_or_threads() -> None:
    model = calibrated("edsr")
    engine = Engine(model)
    tiles, bits = photograph(16, 16, count=5, seed=12), row(model, "mixed", count=5)
    together = engine.run(tiles, bits, threads=1)
    for threads in (2, 3, 7):
        assert torch.equal(engine.run(tiles, bits, threads=threads), together)
    alone = [engine.run(tiles[i : i + 1], bits[i : i + 1]) for i in range(5)]
    assert torch.equal(torch.cat(alone), together)


def test_the_number_of_threads_is_restored() -> None:
    model = calibrated("edsr")
    before = torch.get_num_threads()
    engine, tiles = Engine(model), photograph(12, 12, count=4)
    for threads in (1, 2, 3):
        engine.run(tiles, row(model, 8, count=4), threads=threads)
        assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="search space"):
        engine.run(tiles, row(model, 8, count=4) + 1)
    assert torch.get_num_threads() == before


def test_several_callers_at_once() -> None:
    model = calibrated("edsr")
    engine, tiles = Engine(model), photograph(16, 16, count=4, seed=13)
    bits = row(model, "mixed", count=4)
    wanted, found = engine.run(tiles, bits), {}

    def call(number: int) -> None:
        found[number] = engine.run(tiles, bits)

    callers = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(torch.equal(found[number], wanted) for number in range(4))


def test_tiles_of_any_layout_and_type_give_the_same() -> None:
    model = calibrated("edsr")
    engine, tiles, bits = Engine(model), photograph(16, 20, seed=14), row(model, 6)
    wanted = engine.run(tiles, bits)
    rows_of_pixels = tiles[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)[None]
    assert torch.equal(engine.run(rows_of_pixels, bits), wanted)
    assert torch.equal(engine.run(tiles.float(), bits), wanted)


def packs(model: Backbone) -> int:
    """Return the number of packs of the first convolution's weights for all rows of bits."""
    return len(Engine(model).program.blocks[0].conv1.packs)


def test_rows_share_packed_weights() -> None:
    assert packs(calibrated("edsr")) == 1
    assert packs(calibrated("edsr", weight_bits="same")) == 3


def test_importing_the_package_does_not_import_numba() -> None:
    """So a numba that is missing or broken is found where something can take its place."""
    code = "import sys, cabm.cli, cabm.engine; print({'numba', 'llvmlite'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_without_numba_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for backbone in BACKBONES:
        model = calibrated(backbone)
        tiles, bits = photograph(17, 14, seed=15), row(model, "mixed")
        wanted = Engine(model).run(tiles, bits)
        with monkeypatch.context() as patch:
            patch.setattr(elementwise, "compiled", lambda: None)
            assert torch.equal(Engine(model).run(tiles, bits), wanted)


@pytest.mark.parametrize(
    ("kind", "bits", "message"),
    [
        ("cabm", None, "needs bits"),
        ("pams", torch.full((1, 4), 8), "takes no bits"),
        ("cabm", torch.full((1, 3), 8), "shape"),
        ("cabm", torch.full((2, 4), 8), "shape"),
        ("cabm", torch.full((1, 4), 5), "search space"),
    ],
)
def test_wrong_bits_are_refused(kind: str, bits: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(calibrated("edsr", kind)).run(photograph(8, 8), bits)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: calibrated("edsr", "float"), "no quantized layers"),
        (lambda: calibrated("edsr", "pams", quantize_ends=True), "heads and tails"),
        (lambda: calibrated("srresnet", options={"release_graph": True}), "released graph"),
    ],
)
def test_unsupported_models_are_refused_with_a_reason(model, expected: str) -> None:
    built = model()
    assert expected in supports(built)
    with pytest.raises(InputError, match="engine int8"):
        Engine(built)


def test_it_runs_tiles_and_parts_of_tiles_of_any_shape() -> None:
    model = calibrated("edsr")
    engine = compile_model(model)
    for number, (height, width) in enumerate([(30, 22), (9, 40), (7, 7)]):
        tensors = photograph(height, width, seed=number)[:, :, 1:], row(model, (4, "mixed", 8)[number])
        tile, bits = (tensor.numpy() for tensor in tensors)
        for inside in (False, True):
            upscaled, used = engine(tile, bits, inside=inside)
            assert upscaled.dtype == np.uint8
            np.testing.assert_array_equal(upscaled, engine.run(tile, bits, threads=1))
            assert used is bits
        precise, _ = engine(tile.astype(np.float32), bits)
        assert precise.dtype == np.float32
        np.testing.assert_array_equal(np.rint(precise).clip(0, 255), upscaled)
    with pytest.raises(ValueError, match="search space"):
        engine(tile, np.full_like(bits, 5))
