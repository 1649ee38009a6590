"""The direct form on ARM: compiled for it on any CPU, and run by Debian's qemu-user (`pytest -m slow`)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cabm.engine import forms, vnni_ir
from cabm.engine.fused import Kernel
from cabm.engine.layer_numbers import (
    EPILOGUES,
    HIGH,
    INVERSE,
    LEAKY_TO_BOTH,
    LOW,
    NUMBERS,
    ROUND,
    ROUNDING,
    SLOPE,
)
from cabm.machine import cpu

TRIPLE = "aarch64-unknown-linux-gnu"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
HARNESS = Path(__file__).with_name("neon_harness.c")


def compiled_for(processor: str) -> tuple[str, bytes]:
    """Return assembly and object file of the form's convolution and epilogues, as numba compiles them."""
    from llvmlite import binding, ir

    from cabm.engine import epilogue, vnni_ir
    from cabm.engine.emitter import SIZE, Emitter

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    module = ir.Module("neon")
    module.triple = TRIPLE
    for name, operands, integers, emit in (
        ("convolve", vnni_ir.Operands, vnni_ir.INTEGERS, vnni_ir.emit_convolution),
        ("finish", epilogue.Row, epilogue.INTEGERS, epilogue.emit_row),
    ):
        kind = ir.FunctionType(ir.VoidType(), [SIZE] * len(operands._fields))
        function = ir.Function(module, kind, name)
        emitter = Emitter(ir.IRBuilder(function.append_basic_block()), 4)
        named = zip(operands._fields, function.args, strict=True)
        emit(emitter, operands(*(v if key in integers else emitter.pointer(v) for key, v in named)))
        emitter.builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_triple(TRIPLE).create_target_machine(cpu=processor, opt=3)
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(parsed, builder)
    return machine.emit_assembly(parsed), machine.emit_object(parsed)


def innermost_loops(code: str) -> list[list[str]]:
    """Return the instructions of each loop of one block."""
    loops, block, label = [], [], ""
    for line in code.splitlines():
        if line.startswith(".L"):
            label, block = line.split(":")[0], []
        elif line.startswith("\t") and not line.startswith("\t."):
            block.append(line)
            if line.split()[-1] == label:
                loops.append([*block])
    return loops


@pytest.mark.parametrize("processor", ["neoverse-n1", "cortex-a76", "apple-m1"])
def test_sums_stay_in_registers(processor: str) -> None:
    """Most instructions of the innermost loops are products; none reads or writes the stack."""
    code, _ = compiled_for(processor)
    loops = [loop for loop in innermost_loops(code) if any("sdot" in line for line in loop)]
    assert max(sum("sdot" in line for line in loop) / len(loop) for loop in loops) > 0.7
    assert not any("[sp" in line for loop in loops for line in loop)


def test_arm_with_dot_products_gets_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", lambda: {"dotprod": True, "neon": True})
    form = forms.choose_form()
    assert form is not None and form.name == "direct 128"


@pytest.mark.parametrize(
    ("name", "features", "expected"),
    [
        ("neoverse-n1", "fp asimd asimddp", True),
        ("cortex-a72", "fp asimd crc32", False),
        ("generic", "fp asimd asimddp", False),
    ],
)
def test_dot_products_are_found(
    name: str, features: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LLVM must know the CPU by its name, and the system must list the instructions."""
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {features}\n")
    monkeypatch.setattr(cpu, "Path", lambda path: tmp_path / Path(path).name)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(cpu.platform, "system", lambda: "Linux")
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", dict)
    monkeypatch.setattr("llvmlite.binding.get_host_cpu_name", lambda: name)
    assert bool(cpu.compiler_features().get("dotprod")) is expected


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("neon")
    (folder / "neon.o").write_bytes(compiled_for("neoverse-n1")[1])
    build = [COMPILER, "-O1", "-static", "-o", folder / "neon", HARNESS, folder / "neon.o"]
    subprocess.run(build, check=True, timeout=300)
    return folder / "neon"


@pytest.mark.slow
@pytest.mark.skipif(
    None in map(shutil.which, (COMPILER, EMULATOR)), reason=f"needs {COMPILER} and {EMULATOR}"
)
@pytest.mark.parametrize("values", ["random", "highest", "lowest"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("height", "width", "outputs"), [(3, 11, 64), (1, 1, 16), (2, 9, 48)])
def test_emulated_sums_and_codes_are_exact(
    program: Path, height: int, width: int, outputs: int, shifted: bool, values: str
) -> None:
    inputs = 64
    generator = torch.Generator().manual_seed(height)
    weights = torch.randint(-127, 128, (outputs, inputs, 3, 3), generator=generator)
    image = torch.randint(1 if shifted else 0, 256, (inputs, height, width), generator=generator)
    if values != "random":
        weights[:], image[:] = 127 if values == "highest" else -127, 255
    zero = 128 if shifted else 0
    framed = F.pad(image, (1, 1, 1, 1), value=zero).permute(1, 2, 0).to(torch.uint8)
    form = forms.direct(4)
    packed = form.pack(weights.numpy())
    starts = Kernel(form, lambda: None).pack(weights.numpy(), shifted=shifted).starts
    numbers = np.zeros(NUMBERS, np.float32)
    numbers[[SLOPE, INVERSE, LOW, HIGH, ROUNDING]] = 1, 2.0**-12, -127, 127, ROUND + 128
    affine = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
    data = [each.tobytes() for each in (framed.numpy(), packed, starts, *affine, numbers)]
    sizes = height, width, inputs, outputs, vnni_ir.PIXELS[4], EPILOGUES.index(LEAKY_TO_BOTH), NUMBERS
    run = [EMULATOR, "-cpu", "max", program, *map(str, sizes)]
    found = subprocess.run(run, input=b"".join(data), capture_output=True, check=True, timeout=300).stdout
    count = height * width * outputs
    codes, floats = np.frombuffer(found[:count], np.uint8), np.frombuffer(found[count:], np.float32)
    sums = F.conv2d(image[None].double() - zero, weights.double(), padding=1)[0].permute(1, 2, 0).float()
    assert floats.tolist() == sums.flatten().tolist()
    wanted = (sums * 2.0**-12).clamp(-127, 127).round() + 128
    assert codes.tolist() == wanted.flatten().tolist()
