from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import compile_model, forms, fused, layer_numbers, onednn, supports
from cabm.engine.blocks import Blocks
from cabm.engine.fused import FusedBlocks, Kernel
from cabm.engine.integer import IntegerModel
from cabm.engine.layer_numbers import NEXT_READ, NUMBERS
from cabm.machine import cpu
from cabm.models import Backbone
from cabm.quant.layers import QuantConv2d

from .helpers import CHOICES, FORMS, calibrated, compiled, needs_units, photograph, row, simulated


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """Every form that this CPU can execute, as if it were the one chosen."""
    chosen = compiled(request.param)
    monkeypatch.setattr(fused, "compiled", lambda: chosen)
    return chosen


WIDE = {"num_features": 64, "num_blocks": 3}


def both(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> tuple[IntegerModel, IntegerModel]:
    """Return the model with fused blocks, and layer by layer."""
    whole = compile_model(model)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "compiled", lambda: None)
        layered = compile_model(model)
    sample = row(model, 8)
    bits = None if sample is None else tuple(sample[0].tolist())
    assert isinstance(whole._program.plan(bits), FusedBlocks)
    assert isinstance(layered._program.plan(bits), Blocks)
    return whole, layered


@needs_units
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 6), (13, 11), (1, 40), (24, 33)])
@pytest.mark.parametrize("bits", [4, 6, 8, "mixed"])
def test_fused_blocks_equal_layer_by_layer(
    size: tuple[int, int], bits: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated("edsr", options=WIDE)
    whole, layered = both(model, monkeypatch)
    tiles, rows = photograph(*size, count=2, seed=3), row(model, bits, count=2)
    found = whole.run(tiles, rows, dtype=torch.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=torch.float32))


@needs_units
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "variant",
    [
        {"options": {"num_features": 128, "num_blocks": 1}},
        {"options": WIDE | {"res_scale": 0.1}},
        {"kind": "pams"},
        {"kind": "cadyq"},
        {"weight_bits": 4},
        {"weight_bits": "same"},
        {"search_space": (4, 8)},
        {"skip": 8},
        {"after_relu": "unsigned"},
        {"weight_granularity": "channel"},
        {"weight_bits": "same"} | CHOICES,
        CHOICES,
    ],
    ids=str,
)
def test_every_kind_of_block_is_equal(variant: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated("edsr", **{"options": WIDE} | variant)
    whole, layered = both(model, monkeypatch)
    tiles, rows = photograph(17, 20, count=3, seed=4), row(model, "mixed", count=3)
    found = whole.run(tiles, rows, dtype=torch.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=torch.float32))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("bits", [4, 8, "mixed"])
def test_fused_blocks_agree_with_the_simulation(bits: int | str) -> None:
    model = calibrated("edsr", options=WIDE)
    tiles, rows = photograph(21, 26, count=2, seed=5), row(model, bits, count=2)
    found = compile_model(model, float_dtype=torch.float32).run(tiles, rows, dtype=torch.float32)
    assert float((found - simulated(model, tiles, rows)).abs().mean()) <= 0.05


@pytest.mark.parametrize(("height", "width"), [(3, width) for width in range(1, 14)] + [(1, 25), (2, 49)])
def test_sums_codes_and_borders_are_exact(kernel: Kernel, height: int, width: int) -> None:
    """Compare with double precision; factors are powers of two, so nothing is rounded."""
    channels = 64
    generator = np.random.default_rng(width)
    convs = torch.from_numpy(generator.integers(-127, 128, (4, channels, channels, 3, 3)))
    read, skip = torch.from_numpy(generator.integers(1, 256, (2, 1, channels, height, width)))
    biases = generator.integers(-64, 65, (4, channels)) / 16
    exponents = generator.integers(9, 15, (4, channels))
    exponents[1::2] -= 2
    step, skip_step, read_step, next_step = 0.25, 0.5, 0.5, 0.125
    factors = 2.0**-exponents
    weights = [kernel.pack(conv, shifted=index % 2 == 0) for index, conv in enumerate(convs)]
    hidden_levels, levels, read_levels, next_levels = 15, 127, 31, 127
    nothing = (0, 0, 0, 0, layer_numbers.WIDE)
    numbers = np.array(
        [
            (1, 0.5, 0, hidden_levels, 0, 0, *nothing),
            (
                0.5,
                1,
                -levels,
                levels,
                step,
                skip_step,
                1 / read_step,
                read_levels,
                1 / next_step,
                next_levels,
                layer_numbers.WIDE,
            ),
            (1, 0.5, 0, 255, 0, 0, *nothing),
            (0.5, 1, -levels, levels, step, next_step, *nothing),
        ],
        dtype=np.float32,
    )
    out = np.empty(height * width * channels, dtype=np.float32)
    kernel.run(
        *(x.permute(0, 2, 3, 1).to(torch.uint8).numpy().ravel() for x in (read, skip)),
        height,
        width,
        np.array([each.address for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        (factors / kernel.form.unit).astype(np.float32),
        biases.astype(np.float32),
        numbers,
        out,
    )

    def convolved(x: torch.Tensor, number: int) -> torch.Tensor:
        sums = F.conv2d(x.double(), convs[number].double(), padding=1)
        scaled = sums * torch.from_numpy(factors[number]).view(1, -1, 1, 1)
        return scaled + torch.from_numpy(biases[number]).view(1, -1, 1, 1)

    hidden = (convolved(read.double() - 128, 0) * 0.5).round().clamp(0, hidden_levels)
    residual = (convolved(hidden, 1) * 0.5).round().clamp(-levels, levels)
    total = residual * step + (skip.double() - 128) * skip_step
    read = (total / read_step).round().clamp(-read_levels, read_levels)
    skip = (total / next_step).round().clamp(-next_levels, next_levels)
    hidden = (convolved(read, 2) * 0.5).round().clamp(0, 255)
    residual = (convolved(hidden, 3) * 0.5).round().clamp(-levels, levels)
    wanted = residual * step + skip * next_step
    found = torch.from_numpy(out).view(1, height, width, channels).permute(0, 3, 1, 2)
    assert torch.equal(found.double(), wanted)
    assert residual.min() < 0 < residual.max() and residual.unique().numel() > 10


@pytest.mark.usefixtures("kernel")
def test_several_threads_call_it_at_once() -> None:
    model = calibrated("edsr", options=WIDE)
    engine = compile_model(model)
    tiles, bits = photograph(19, 23, count=8, seed=6), row(model, "mixed", count=8)
    wanted = engine.run(tiles, bits, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine.run(tiles, bits, threads=2), range(4)))
    assert all(torch.equal(each, wanted) for each in found)


def test_it_is_compiled_once(kernel: Kernel) -> None:
    """Tiles call the signature that was compiled at first; threads must not compile."""
    model = calibrated("edsr", options=WIDE)
    engine = compile_model(model)
    engine.run(photograph(4, 4), row(model, 8))
    before = list(kernel.run.signatures)
    for size in ((5, 9), (16, 16)):
        engine.run(photograph(*size), row(model, 8))
    assert kernel.run.signatures == before
    assert len(before) == 1


@needs_units
def test_other_numbers_of_channels_run_layer_by_layer() -> None:
    model = calibrated("edsr", options={"num_features": 48})
    plan = compile_model(model)._program.plan((8,) * model.num_adaptive)
    assert isinstance(plan, Blocks)


@pytest.mark.parametrize("code", [127, -127], ids=["highest", "lowest"])
@pytest.mark.parametrize("byte", [0, 1, 255])
def test_saturated_sums_are_exact(kernel: Kernel, code: int, byte: int) -> None:
    """All inputs and all weights at their ends, the largest number of channels that tests can afford."""
    height, width, channels = 3, 5, 192
    convs = torch.full((2, channels, channels, 3, 3), code)
    weights = [kernel.pack(conv, shifted=index == 0) for index, conv in enumerate(convs)]
    numbers = np.zeros((2, NUMBERS), dtype=np.float32)
    numbers[:, :NEXT_READ] = [1, 1, 0, 255, 0, 0], [1, 2.0**-20, -127, 127, 1, 1]
    factors = np.array([[2.0**-8], [1]], dtype=np.float32).repeat(channels, axis=1)
    codes = np.full(height * width * channels, byte, dtype=np.uint8)
    out = np.empty(codes.size, dtype=np.float32)
    kernel.run(
        *(codes, codes, height, width),
        np.array([each.address for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        factors / kernel.form.unit,
        np.zeros_like(factors),
        numbers,
        out,
    )
    x = torch.full((1, channels, height, width), byte - 128.0, dtype=torch.float64)
    hidden = (F.conv2d(x, convs[0].double(), padding=1) / 2**8).round().clamp(0, 255)
    residual = (F.conv2d(hidden, convs[1].double(), padding=1) / 2**20).round().clamp(-127, 127)
    assert out.tolist() == (residual + x).permute(0, 2, 3, 1).flatten().tolist()


@pytest.mark.parametrize("channels", [32, 96])
def test_channels_are_a_multiple_of_the_group(kernel: Kernel, channels: int) -> None:
    model = calibrated("edsr", options=WIDE | {"num_features": channels})
    plan = compile_model(model)._program.plan((8,) * model.num_adaptive)
    assert isinstance(plan, FusedBlocks) is (channels % kernel.form.group == 0)


def test_more_channels_than_sums_can_hold_are_refused(kernel: Kernel) -> None:
    form = kernel.form
    largest = form.unit * 9 * 255 * 127
    assert form.most_channels * largest < 2**31 <= (form.most_channels + 1) * largest
    few = replace(form, most_channels=63)
    assert not fused._fuses(QuantConv2d(64, 64, 3, padding=1), few)
    assert fused._fuses(QuantConv2d(64, 64, 3, padding=1), form)


ON_ANOTHER_CPU = """
import sys
from llvmlite import binding

lanes, hidden = int(sys.argv[2]), sys.argv[3].split(",")
host = binding.get_host_cpu_features()
features = {name: on and not any(name.startswith(each) for each in hidden) for name, on in host.items()}
binding.get_host_cpu_features = lambda: features
import numba
from cabm.engine import forms, fused

forms.integer_units = list
form = forms.choose_form()
kernel = fused.Kernel(form, numba.njit(form.loop()))
assert fused._tried(kernel), "wrong results"
(code,) = kernel.run.inspect_asm().values()
print(form.name, sys.argv[1] in code, "zmm" in code)
"""


@pytest.mark.parametrize(
    ("name", "processor", "hidden", "instruction"),
    [
        ("direct 256", "alderlake", "avx512", "vpdpbusd"),
        ("winograd 512", "skylake-avx512", "avx512vnni,avxvnni", "vpmaddwd"),
        ("winograd 256", "haswell", "avx512,avxvnni", "vpmaddwd"),
    ],
)
def test_other_processors_get_a_form(name: str, processor: str, hidden: str, instruction: str) -> None:
    """Compile for a processor that lacks some of this one's instructions, and run it."""
    feature, _, lanes = FORMS[name]
    if not cpu.compiler_features().get(feature):
        pytest.skip(f"this CPU has no {feature}")
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    run = [sys.executable, "-c", ON_ANOTHER_CPU, instruction, str(lanes), hidden]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == [*name.split(), "True", str(lanes == 16)], found.stderr


@pytest.mark.usefixtures("kernel")
def test_edsr_needs_nothing_of_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = calibrated("edsr", options=WIDE)
    tiles, bits = photograph(9, 14, count=2), row(model, "mixed", count=2)
    wanted = compile_model(model).run(tiles, bits)

    def fail(*arguments: object, **options: object) -> None:
        raise AssertionError("oneDNN's integer convolutions must not be used")

    monkeypatch.setattr(onednn, "available", lambda: (False, "this CPU has no integer units"))
    monkeypatch.setattr(onednn.IntegerConv, "__init__", fail)
    assert supports(model) is None
    assert torch.equal(compile_model(model).run(tiles, bits), wanted)
    assert supports(calibrated("carn")) == "this CPU has no integer units"


@pytest.fixture
def forgetful() -> Iterator[None]:
    fused.compiled.cache_clear()
    yield
    fused.compiled.cache_clear()
    fused.compiled()  # compile here, not in the next test, which may patch it


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({}, None),
        ({"avx": True}, None),
        ({"avx2": True}, "winograd 256"),
        ({"avx2": True, "avx512f": True}, "winograd 256"),
        ({"avx2": True, "avx512bw": True}, "winograd 512"),
        ({"avx2": True, "avxvnni": True}, "direct 256"),
        ({"avx2": True, "avx512bw": True, "avx512vnni": True, "avxvnni": True}, "direct 512"),
    ],
    ids=str,
)
def test_the_cpu_chooses_the_form(
    features: dict, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: features)
    monkeypatch.setattr(cpu, "cpu_features", dict)
    form = forms.choose_form()
    assert (form and form.name) == name


def test_processors_with_amx_run_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: {"avx512_vnni": True, "amx_int8": True})
    assert forms.choose_form() is None


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("fault", ["missing", "target", "raises", "wrong", "wrong at the border"])
def test_without_a_working_numba_blocks_run_layer_by_layer(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = fused.jit

    def compile_kernel(function: object) -> object:
        if fault == "raises":
            raise RuntimeError("LLVM has no such instruction")
        kernel = right(function)

        def wrong(*arguments: object) -> None:
            kernel(*arguments)
            arguments[-1][-1 if fault == "wrong at the border" else 700] += 1

        return wrong

    if fault == "missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    elif fault == "target":
        import numba

        monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    else:
        monkeypatch.setattr(fused, "jit", compile_kernel)
    assert fused.compiled() is None
    model = calibrated("edsr", options=WIDE)
    assert isinstance(compile_model(model)._program.plan((8,) * model.num_adaptive), Blocks)
