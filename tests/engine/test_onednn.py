from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from cabm.engine import fused, onednn, supports
from cabm.engine.elementwise import byte_type
from cabm.engine.grid import Grid, Storage
from cabm.engine.packing import Scaling
from cabm.errors import InputError
from cabm.machine import cpu

from .helpers import Engine, calibrated, needs_units


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every test ask again for the units of this machine, which compiled layers do not need."""
    monkeypatch.setattr(fused, "compiled", lambda **_: None)
    onednn.available.cache_clear()
    yield
    onednn.available.cache_clear()
    onednn.available()  # here, not in the next test, which may patch it


@needs_units
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("storage", [Storage.POSITIVE, Storage.SHIFTED])
def test_sums_are_exact_and_rounded_once(storage: Storage, shifted: bool, groups: int) -> None:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(-127, 128, (8, 16 // groups, 3, 3), generator=generator)
    x = torch.randint(0, 256, (2, 16, 7, 9), generator=generator, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    factors, bias = torch.rand(8, generator=generator), torch.randn(8, generator=generator)
    scaling = Scaling(factors.numpy(), bias.numpy())
    grid = Grid(1.0, 8, storage)
    conv = onednn.IntegerConv(codes.numpy(), padding=(1, 1), groups=groups, shifted=shifted)
    sums = torch.nn.functional.conv2d(x.double() - grid.zero, codes.double(), padding=1, groups=groups)
    wanted = sums.float() * factors.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    assert torch.equal(conv.to_float(x, grid, scaling), wanted)
    # sums reach some thousands, so codes clip at both ends, of 8 bits and fewer
    for bits, kind in product([4, 6, 8], [Storage.SIGNED, Storage.POSITIVE]):
        out = next(grid for grid in (Grid(alpha, bits, kind) for alpha in range(900, 999)) if grid.divisor)
        expected = (wanted * (1 / torch.tensor(out.divisor))).round().clamp(out.low, out.levels)
        codes = conv.to_codes(x, grid, scaling, out)
        assert codes.dtype == byte_type(out)
        assert torch.equal(codes.float(), expected)
        assert expected.min() == out.low and expected.max() == out.levels


def refused(expected: str) -> None:
    ok, reason = onednn.available()
    assert not ok
    assert expected in reason
    assert "\n" not in reason
    model = calibrated("edsr")
    assert supports(model) == reason
    with pytest.raises(InputError, match="engine float or auto"):
        Engine(model)


def test_other_processors_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    refused("this is aarch64")


def test_processors_without_integer_units_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(cpu, "compiler_features", lambda: {"avx2": True, "avx512f": True})
    refused("no integer matrix units")


def test_without_llvm_it_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = onednn.available()
    onednn.available.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    assert onednn.available() == expected


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_missing_units", lambda: None)


@pytest.mark.usefixtures("units")
def test_a_missing_operator_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise AttributeError("'_OpNamespace' 'onednn' object has no attribute 'qconv_prepack'\nmore")

    monkeypatch.setattr(onednn.IntegerConv, "__init__", missing)
    refused("AttributeError")


@pytest.mark.usefixtures("units")
def test_an_operator_with_other_arguments_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*arguments: object, **options: object) -> None:
        raise RuntimeError("qconv2d_pointwise() is missing value for argument 'new'\nDeclaration: ...")

    monkeypatch.setattr(onednn.IntegerConv, "_run", changed)
    refused("missing value")


@needs_units
@pytest.mark.usefixtures("units")
@pytest.mark.parametrize("fault", ["saturates", "wraps", "ignores the ReLU", "wraps bytes"])
def test_wrong_results_fall_back(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    right = onednn.IntegerConv._run

    def wrong(self: onednn.IntegerConv, *arguments: object) -> torch.Tensor:
        *operands, divisor, dtype, post_op = arguments
        if dtype == torch.int8 and fault == "wraps bytes":
            return (right(self, *operands, 1.0, torch.float32, post_op) / divisor).round().int().to(dtype)
        y = right(self, *operands, divisor, dtype, "none" if fault == "ignores the ReLU" else post_op)
        if y.dtype == torch.float32 and fault == "saturates":  # sums of 16 bits
            return y.clamp(-32768 * 0.125, 32767 * 0.125)
        if y.dtype == torch.float32 and fault == "wraps":
            return torch.remainder(y, 2**16)
        return y

    monkeypatch.setattr(onednn.IntegerConv, "_run", wrong)
    refused("are wrong")


@needs_units
def test_saturating_kernels_of_onednn_are_detected() -> None:
    """Without VNNI, oneDNN adds pairs of products in 16 bits, which saturate silently."""
    code = "from cabm.engine import onednn; print(onednn._failed_self_test())"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = [sys.executable, "-c", code]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert "are wrong" in found.stdout


def test_models_elsewhere_fall_back() -> None:
    assert "meta" in supports(calibrated("edsr").to("meta"))
