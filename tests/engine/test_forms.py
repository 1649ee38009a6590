"""Which form of the compiled layers a CPU runs, and what happens where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cabm.engine import forms, fused
from cabm.engine.chains import Chain
from cabm.machine import cpu
from cabm.models import build_model
from cabm.quant import Precision

from .helpers import FORMS, Engine, calibrated, needs_units

ON_ANOTHER_CPU = """
import sys
from llvmlite import binding

hidden = sys.argv[2].split(",")
host = binding.get_host_cpu_features()
features = {name: on and not any(name.startswith(each) for each in hidden) for name, on in host.items()}
binding.get_host_cpu_features = lambda: features
import numba
from cabm.engine import forms, fused
from cabm.engine.trial import tried

form = forms.choose_form()
kernel = fused.Kernel(form, numba.njit(form.loop()))
assert tried(kernel), "wrong results"
(code,) = kernel.run.inspect_asm().values()
print(form.name, sys.argv[1] in code, "zmm" in code)
"""


@pytest.mark.parametrize(
    ("name", "processor", "hidden", "instruction"),
    [
        ("winograd 256", "alderlake", "avx512,amx", "vpdpwssd"),
        ("winograd 512", "skylake-avx512", "avx512vnni,avxvnni,amx", "vpmaddwd"),
        ("winograd 256", "haswell", "avx512,avxvnni,amx", "vpmaddwd"),
    ],
)
def test_other_processors_get_a_form(name: str, processor: str, hidden: str, instruction: str) -> None:
    """Compile for a processor that lacks some of this one's instructions, and run it."""
    if not cpu.compiler_features().get(FORMS[name][0]):
        pytest.skip(f"this CPU has no {FORMS[name][0]}")
    environment = os.environ | {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": ""}
    run = [sys.executable, "-c", ON_ANOTHER_CPU, instruction, hidden]
    found = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == [*name.split(), "True", str("512" in name)], found.stderr


@pytest.fixture
def forgetful() -> Iterator[None]:
    fused.compiled.cache_clear()
    yield
    fused.compiled.cache_clear()
    fused.compiled()  # compile here, not in the next test, which may patch it


REGISTERS_512 = {"avx512bw": True, "avx512dq": True}


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({}, None),
        ({"avx": True}, None),
        ({"avx2": True}, "winograd 256"),
        ({"avx2": True, "avx512f": True}, "winograd 256"),
        ({"avx2": True, "avx512bw": True}, "winograd 256"),
        ({"avx2": True} | REGISTERS_512, "winograd 512"),
        ({"avx2": True, "avxvnni": True}, "winograd 256"),
        ({"avx2": True, "avx512vnni": True, "avxvnni": True} | REGISTERS_512, "direct 512"),
        ({"avx2": True, "avx512vnni": True, "amx-int8": True} | REGISTERS_512, "matrix 512"),
    ],
    ids=str,
)
def test_the_cpu_chooses_the_form(
    features: dict, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: features)
    monkeypatch.setattr("cabm.engine.amx.permitted", lambda: True)
    form = forms.choose_form()
    assert (form and form.name) == name
    form = forms.choose_form(wide=True)
    assert (form and form.name) == ("winograd 512" if name == "direct 512" else name)


@pytest.mark.parametrize(
    ("backbone", "options", "wide"),
    [
        ("edsr", {"num_features": 64}, True),
        ("edsr", {"num_features": 48}, False),
        ("srresnet", {"num_features": 64}, True),
        ("idn", {}, False),
        ("carn", {"num_features": 64}, True),
    ],
)
def test_wide_models_get_winograd_with_vnni(
    backbone: str, options: dict, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions of 64 channels, but not few channels."""
    asked: list[dict] = []
    monkeypatch.setattr(fused, "compiled", lambda **model: asked.append(model))
    fused.kernel_for(build_model(backbone, 2, Precision("pams"), options))
    assert asked == [{"wide": wide}]


def test_without_permission_amx_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"avx512vnni": True, "amx-int8": True} | REGISTERS_512
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: features)
    monkeypatch.setattr("cabm.engine.amx.permitted", lambda: False)
    assert forms.choose_form().name == "direct 512"


@needs_units
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
            arguments[-1][-1 if fault == "wrong at the border" else 300] += 1

        return wrong

    if fault == "missing":
        monkeypatch.setitem(sys.modules, "numba", None)
    elif fault == "target":
        import numba

        monkeypatch.setattr(numba.config, "CPU_NAME", "generic")
    else:
        monkeypatch.setattr(fused, "jit", compile_kernel)
    assert fused.compiled() is None
    model = calibrated("edsr", options={"num_features": 64})
    assert not isinstance(Engine(model).program.plan((8,) * model.num_adaptive), Chain)
