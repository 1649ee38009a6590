from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import blocks, compile_model, onednn
from cabm.engine.blocks import Blocks, FusedBlocks, FusedWeights
from cabm.engine.integer import IntegerModel
from cabm.machine import cpu
from cabm.models import Backbone

from .helpers import CHOICES, calibrated, needs_units, photograph, row, simulated

needs_kernel = pytest.mark.skipif(
    not onednn.available()[0] or blocks.compiled() is None, reason="no VNNI, or AMX"
)
WIDE = {"num_features": 64, "num_blocks": 3}


def both(model: Backbone, monkeypatch: pytest.MonkeyPatch) -> tuple[IntegerModel, IntegerModel]:
    """Return the model with fused blocks, and layer by layer."""
    fused = compile_model(model)
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "compiled", lambda: None)
        layered = compile_model(model)
    sample = row(model, 8)
    bits = None if sample is None else tuple(sample[0].tolist())
    assert isinstance(fused._program.plan(bits), FusedBlocks)
    assert isinstance(layered._program.plan(bits), Blocks)
    return fused, layered


@needs_kernel
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 6), (13, 11), (1, 40), (24, 33)])
@pytest.mark.parametrize("bits", [4, 6, 8, "mixed"])
def test_fused_blocks_equal_layer_by_layer(
    size: tuple[int, int], bits: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated("edsr", options=WIDE)
    fused, layered = both(model, monkeypatch)
    tiles, rows = photograph(*size, count=2, seed=3), row(model, bits, count=2)
    found = fused.run(tiles, rows, dtype=torch.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=torch.float32))


@needs_kernel
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
    fused, layered = both(model, monkeypatch)
    tiles, rows = photograph(17, 20, count=3, seed=4), row(model, "mixed", count=3)
    found = fused.run(tiles, rows, dtype=torch.float32)
    assert torch.equal(found, layered.run(tiles, rows, dtype=torch.float32))


@needs_kernel
@pytest.mark.parametrize("bits", [4, 8, "mixed"])
def test_fused_blocks_agree_with_the_simulation(bits: int | str) -> None:
    model = calibrated("edsr", options=WIDE)
    tiles, rows = photograph(21, 26, count=2, seed=5), row(model, bits, count=2)
    found = compile_model(model, float_dtype=torch.float32).run(tiles, rows, dtype=torch.float32)
    assert float((found - simulated(model, tiles, rows)).abs().mean()) <= 0.05


@needs_kernel
@pytest.mark.parametrize("width", range(1, 14))
def test_sums_codes_and_borders_are_exact(width: int) -> None:
    """Compare with double precision; factors are powers of two, so nothing is rounded."""
    height, channels = 3, 64
    generator = np.random.default_rng(width)
    convs = torch.from_numpy(generator.integers(-127, 128, (4, channels, channels, 3, 3)))
    read, skip = torch.from_numpy(generator.integers(1, 256, (2, 1, channels, height, width)))
    biases = generator.integers(-64, 65, (4, channels)) / 16
    exponents = generator.integers(9, 15, (4, channels))
    exponents[1::2] -= 2
    step, skip_step, read_step, next_step = 0.25, 0.5, 0.5, 0.125
    factors = 2.0**-exponents
    weights = [FusedWeights(conv, shifted=index % 2 == 0) for index, conv in enumerate(convs)]
    hidden_levels, levels, read_levels, next_levels = 15, 127, 31, 127
    nothing = (0, 0, 0, 0)
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
            ),
            (1, 0.5, 0, 255, 0, 0, *nothing),
            (0.5, 1, -levels, levels, step, next_step, *nothing),
        ],
        dtype=np.float32,
    )
    out = np.empty(height * width * channels, dtype=np.float32)
    blocks.compiled()(
        *(x.permute(0, 2, 3, 1).to(torch.uint8).numpy().ravel() for x in (read, skip)),
        height,
        width,
        np.array([each.address for each in weights], dtype=np.uintp),
        np.stack([each.starts for each in weights]),
        factors.astype(np.float32),
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


@needs_kernel
def test_several_threads_call_it_at_once() -> None:
    model = calibrated("edsr", options=WIDE)
    engine = compile_model(model)
    tiles, bits = photograph(19, 23, count=8, seed=6), row(model, "mixed", count=8)
    wanted = engine.run(tiles, bits, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: engine.run(tiles, bits, threads=2), range(4)))
    assert all(torch.equal(each, wanted) for each in found)


@needs_kernel
def test_it_is_compiled_once() -> None:
    """Tiles call the signature that was compiled at first; threads must not compile."""
    model = calibrated("edsr", options=WIDE)
    engine = compile_model(model)
    before = list(blocks.compiled().signatures)
    for size in ((5, 9), (16, 16)):
        engine.run(photograph(*size), row(model, 8))
    assert blocks.compiled().signatures == before
    assert len(before) == 1


@needs_units
def test_other_numbers_of_channels_run_layer_by_layer() -> None:
    model = calibrated("edsr", options={"num_features": 48})
    plan = compile_model(model)._program.plan((8,) * model.num_adaptive)
    assert isinstance(plan, Blocks)


IN_256_BITS = """
from llvmlite import binding

host = binding.get_host_cpu_features()
host["avx512vnni"] = False
binding.get_host_cpu_features = lambda: host
import numba
from cabm.engine import blocks, vnni, vnni_ir

kernel = numba.njit(vnni.residual_blocks())
assert blocks._tried(kernel), "wrong results"
(code,) = kernel.inspect_asm().values()
print(vnni_ir.LANES, code.count("vpdpbusd") > 0, "zmm" in code)
"""


@pytest.mark.skipif(not cpu.cpu_features().get("avx_vnni"), reason="no AVX-VNNI")
def test_avx_vnni_has_a_kernel_of_256_bits() -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": ""}
    run = [sys.executable, "-c", IN_256_BITS]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == ["8", "True", "False"], found.stderr


@pytest.fixture
def forgetful() -> Iterator[None]:
    blocks.compiled.cache_clear()
    yield
    blocks.compiled.cache_clear()
    blocks.compiled()  # compile here, not in the next test, which may patch it


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    "features", [{}, {"avx512_f": True}, {"avx512_vnni": True, "avx_vnni": True, "amx_int8": True}], ids=str
)
def test_other_processors_run_layer_by_layer(features: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    assert blocks.compiled() is None


@needs_kernel
@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("fault", ["missing", "target", "raises", "wrong", "wrong at the border"])
def test_without_a_working_numba_blocks_run_layer_by_layer(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = blocks.jit

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
        monkeypatch.setattr(blocks, "jit", compile_kernel)
    assert blocks.compiled() is None
    model = calibrated("edsr", options=WIDE)
    assert isinstance(compile_model(model)._program.plan((8,) * model.num_adaptive), Blocks)
