"""The resume state: a damaged one is deleted, and the training starts over."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cabm.models import Backbone, build_model
from cabm.project.schedule import Schedule
from cabm.quant import Precision
from cabm.training.loop import Progress, TrainingPlan, train
from cabm.training.losses import LossWeights, Objective
from cabm.training.state import OLD_FORMAT, Average, TrainingState, read

STEPS = 4


class Patches:
    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        low = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(step)).byte()
        return low, low.repeat_interleave(2, 2).repeat_interleave(2, 3)


def tiny_model() -> Backbone:
    torch.manual_seed(0)
    return build_model("edsr", 2, Precision("float"), {"num_features": 4, "num_blocks": 1})


def run(resume_file: Path | None = None, stop_at: int | None = None) -> tuple[dict[str, Tensor], list[int]]:
    """Train a tiny model; return its weights and the steps that were taken."""
    plan = TrainingPlan(STEPS, {"weights": 1e-3}, Schedule(), ema_decay=0.9, checkpoint_seconds=0)
    steps: list[int] = []

    def note(progress: Progress) -> None:
        steps.append(progress.step)
        progress.history.append({"step": progress.step})
        if progress.step == stop_at:
            raise KeyboardInterrupt

    model = tiny_model()
    with suppress(KeyboardInterrupt):
        train(model, Objective(LossWeights()), Patches(), plan, callbacks=(note,), resume_file=resume_file)
    return dict(model.state_dict()), steps


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The resume state after all steps but the last."""
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    assert run(path, stop_at=STEPS)[1] == [1, 2, 3, 4]
    return path.read_bytes()


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def positions(content: bytes) -> list[int]:
    """Some of the bytes: the length, all around the checksum, and others of header and tensors."""
    chosen = random.Random(0)
    end, checksum = header_size(content), content.index(b'"sha256"')
    header = [0, 1, 7, 8, *range(checksum - 2, checksum + 14), *chosen.sample(range(8, end), 60), end - 1]
    return [*header, *chosen.sample(range(end, len(content)), 60), end, len(content) - 1]


def test_a_whole_state_is_resumed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    assert run(path)[1] == [4]


def flipped(content: bytes, position: int) -> bytes:
    damaged = bytearray(content)
    damaged[position] ^= 1 << position % 8
    return bytes(damaged)


def test_a_flipped_bit_anywhere_is_noticed(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model()
    state = TrainingState(model, torch.optim.Adam(model.parameters()), Average(model, 0.9))
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    assert read(path, state) == content
    for position in positions(content):
        path.write_bytes(flipped(content, position))
        caplog.clear()
        assert read(path, state) is None, f"byte {position}"
        assert not path.exists()
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{path}: resume state damaged, starting over (")


@pytest.mark.parametrize("place", ["header", "tensors"])
def test_a_training_with_a_damaged_state_starts_over(place: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    position = content.index(b'"step":"3"') + 8 if place == "header" else len(content) - 2
    path.write_bytes(flipped(content, position))
    weights, steps = run(path)
    assert steps == [1, 2, 3, 4]
    expected, _ = run()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())


def test_a_checksum_taken_out_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(content, path, without="sha256")
    assert run(path)[1] == [1, 2, 3, 4]


def test_metadata_of_null_are_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    header = json.loads(content[8 : header_size(content)]) | {"__metadata__": None}
    packed = json.dumps(header).encode()
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + content[header_size(content) :])
    assert run(path)[1] == [1, 2, 3, 4]


def test_a_state_of_an_older_version_has_no_checksum_and_is_resumed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save(content, path, without="sha256", format=OLD_FORMAT)
    assert run(path)[1] == [4]


def save(content: bytes, path: Path, *, without: str, **changes: str) -> None:
    """Write a state with other metadata."""
    path.write_bytes(content)
    metadata = json.loads(content[8 : header_size(content)])["__metadata__"] | changes
    del metadata[without]
    save_file(load_file(path), path, metadata)
