"""Fuzz targets: the readers of all files that a user can provide, as functions of a folder and bytes.

A target writes the bytes to the path that the reader expects, reads them as the commands do, and uses the
result. It returns or raises `InputError` with one line. Any other exception is a bug.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save as safetensors_bytes

from cabm.checkpoints.model_directory import load_model, save_model
from cabm.checkpoints.released import import_released, read_released_file
from cabm.cli.model import show_model
from cabm.cli.table import show_table
from cabm.data.prepare import load_positions
from cabm.data.sources import PrepareSettings
from cabm.data.store import PackedStore
from cabm.errors import InputError
from cabm.files import sha256_file
from cabm.imaging.images import read_rgb8
from cabm.imaging.reader import open_raster
from cabm.imaging.source import ReadOptions
from cabm.models import build_model
from cabm.project.params import load_params
from cabm.quant import Precision
from cabm.reporting.inputs import read_report_data
from cabm.reporting.page import render_report
from cabm.tables.bypass import choose_bypass
from cabm.tables.observations import Observations
from cabm.tables.table import build_table
from cabm.upscaling.upscaler import Upscaler
from tests.conftest import REPOSITORY
from tests.data.helpers import make_store
from tests.upscaling.helpers import photo, tiny_model

Read = Callable[[Path, bytes], None]
MAX_PIXELS = 1 << 20
KINDS = ("float", "pams", "cadyq", "cabm", "packed")
NAMES = (
    "params",
    "table",
    "model table",
    "config",
    *(f"weights of {kind}" for kind in KINDS),
    "store",
    "observations",
    "positions",
    "released",
    "image",
    "metrics",
    "timing",
    "results",
    "curve",
    "resume state",
)


@dataclass(frozen=True)
class Target:
    """A reader, and valid files to mutate.

    Attributes:
        read: writes the bytes to a folder and reads them.
        seeds: valid files.
        kind: how the files are mutated: ``json``, ``yaml``, ``safetensors`` or ``bytes``.
        share: share of the usual number of examples, below 1 for slow readers.
    """

    read: Read
    seeds: tuple[bytes, ...]
    kind: str = "bytes"
    share: float = 1.0


def outcome(target: Target, folder: Path, data: bytes) -> bool:
    """Read bytes and return whether they were accepted.

    Raises:
        AssertionError: the message of a refusal is empty, long, or not one line.
        Exception: a bug in the reader.
    """
    try:
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")):
            target.read(folder, data)
    except InputError as error:
        message = str(error)
        assert message.strip() and message.isprintable(), repr(message)
        assert len(message) < 2000, len(message)
        message.encode()
        return False
    return True


@cache
def targets() -> Mapping[str, Target]:
    """Return all targets by name. The first call is slow, because it makes the seeds."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return _targets(Path(folder))


def _targets(folder: Path) -> dict[str, Target]:
    models = {kind: _files(tiny_model(folder / kind, kind)) for kind in ("float", "pams", "cadyq", "cabm")}
    loaded = load_model(folder / "cabm")
    save_model(folder / "packed", loaded.model, table=loaded.table, packed=True)
    models["packed"] = _files(folder / "packed")
    packed = _files(make_store(folder / "store", (5, 7), (3, 4)).directory)
    presets = sorted((REPOSITORY / "cabm" / "project" / "presets").glob("*.yaml"))
    table = models["cabm"]["edge_to_bit.json"]
    return {
        "params": Target(_read_params, tuple(path.read_bytes() for path in presets), "yaml"),
        "table": Target(_read_table, (table,), "json"),
        "model table": Target(_model_with(models["cabm"], "edge_to_bit.json"), (table,), "json"),
        "config": Target(
            _model_with(models["cabm"], "config.json"), (models["cabm"]["config.json"],), "json"
        ),
        **{
            f"weights of {kind}": Target(
                _model_with(files, "model.safetensors"), (files["model.safetensors"],), "safetensors"
            )
            for kind, files in models.items()
        },
        "store": Target(_store_with(packed), (packed["index.json"],), "json"),
        "observations": Target(_read_observations, (_observations(folder),)),
        "positions": Target(_read_positions, (_npy(np.array([[0, 1, 2], [0, 0, 0]], np.int32)),)),
        "released": Target(_read_released, _released(folder)),
        "image": Target(_read_image, _images()),
        "metrics": Target(_report_with("metrics/pams.json"), (_metrics(),), "json", share=0.2),
        "timing": Target(_report_with("timing/pams.json"), (_timing(),), "json", share=0.2),
        "results": Target(_report_with("results/quality.json"), (_quality(),), "json", share=0.04),
        "curve": Target(_report_with("curves/pams.csv"), (b"step,train_l1\n10,3.5\n20,\n",), share=0.2),
        "resume state": Target(_read_resume_state, (_resume_state(folder),), "safetensors"),
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _read_params(folder: Path, data: bytes) -> None:
    path = folder / "params.yaml"
    path.write_bytes(data)
    params = load_params(path)
    params.model_dump_json()
    for stage in ("full_precision", "pams", "cadyq", "cabm"):
        section = getattr(params, stage)
        for step in {0, section.steps // 2, section.steps - 1} if section.steps else ():
            assert 0 <= section.schedule.factor(step, section.steps) <= 1
    with torch.device("meta"):  # shapes only
        build_model(
            params.model.name, params.model.scale, Precision("float"), params.model.chosen_options()
        )


def _read_table(folder: Path, data: bytes) -> None:
    path = folder / "table.json"
    path.write_bytes(data)
    show_table(str(path))
    show_table(str(path), as_json=True)


def _model_with(files: Mapping[str, bytes], replaced: str) -> Read:
    """Return a reader of a model directory with one replaced file, which also upscales an image."""

    def read(folder: Path, data: bytes) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(data if name == replaced else content)
        if replaced == "model.safetensors":  # update the hash, which would reject the file first
            config = json.loads(files["config.json"])
            config["weights_sha256"] = sha256_file(folder / replaced)
            (folder / "config.json").write_text(json.dumps(config))
        show_model(str(folder))
        show_model(str(folder), as_json=True)
        upscaler = Upscaler.load(folder, engine="float", device="cpu")
        assert upscaler(photo(5, 7)).shape == (5 * upscaler.scale, 7 * upscaler.scale, 3)

    return read


def _store_with(files: Mapping[str, bytes]) -> Read:
    def read(folder: Path, data: bytes) -> None:
        for name, content in files.items():
            (folder / name).write_bytes(data if name == "index.json" else content)
        store = PackedStore.open(folder)
        for image in range(len(store)):
            assert store.hr(image).shape[:2] == tuple(side * store.scale for side in store.lr_shape(image))
            assert store.lr(image).shape[:2] == store.lr_shape(image)
            store.lr(image).sum()
            # figures and crops are named after images
            assert (folder / store.names[image]).parent == folder

    return read


def _read_observations(folder: Path, data: bytes) -> None:
    path = folder / "observations.npz"
    path.write_bytes(data)
    found = Observations.load(path)
    bypass = choose_bypass(found, max_loss_db=0.01, max_tile_loss_db=0.3)
    replace(build_table(found), bypass=bypass).save(folder / "table.json")
    show_table(str(folder / "table.json"))


def _observations(folder: Path) -> bytes:
    path = folder / "observations.npz"
    random = np.random.default_rng(0)
    Observations(
        scores=random.uniform(0, 20, 6),
        bits=random.choice([4, 6, 8], (6, 2)),
        images=["a"] * 6,
        backbone="edsr",
        scale=2,
        search_space=(4, 6, 8),
        layers=("body.0.conv1", "body.0.conv2"),
        tile=24,
        stride=22,
        part=8,
        measures={
            name: random.uniform(1, 9, (6, 3, 3))
            for name in ("peaks", "network_sse", "bicubic_sse", "samples")
        },
    ).save(path)
    return path.read_bytes()


def _read_positions(folder: Path, data: bytes) -> None:
    from cabm.data.patches import PatchSampler

    (folder / "train").mkdir(exist_ok=True)
    (folder / "train" / "positions.npy").write_bytes(data)
    settings = PrepareSettings(
        train=[{"source": "sample"}],
        validation={"source": "sample"},
        test=[{"source": "sample"}],
        sampling={"kind": "informative", "patch": 8},
    )
    positions = load_positions(folder, settings, 8)
    store = _training_store()
    PatchSampler(store, batch_size=2, lr_patch=8, seed=0, positions=positions).batch(0)


@cache
def _training_store() -> PackedStore:
    import tempfile

    return make_store(Path(tempfile.mkdtemp(prefix="cabm-fuzz-")) / "train", (20, 30))


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _read_released(folder: Path, data: bytes) -> None:
    path = folder / "released.pt"
    path.write_bytes(data)
    import_released("edsr", "float", read_released_file(path), 2)


def _released(folder: Path) -> tuple[bytes, ...]:
    """Return an EDSR with 4 features and 1 block in both formats of torch.save."""
    names = ["head.0", "body.0.body.0", "body.0.body.2", "body.1", "tail.0.0", "tail.1"]
    shapes = [(4, 3), (4, 4), (4, 4), (4, 4), (16, 4), (3, 4)]
    state = {}
    for name, (high, low) in zip(names, shapes, strict=True):
        state |= {f"{name}.weight": torch.zeros(high, low, 3, 3), f"{name}.bias": torch.zeros(high)}
    made = []
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        made.append(file.getvalue())
    return tuple(made)


def _read_image(folder: Path, data: bytes) -> None:
    """Try both decoders. One of them may refuse a file that the other reads."""
    refused = []
    for reader in (_through_vips, _through_pillow):
        path = folder / "image.png"  # decoders go by the content
        path.write_bytes(data)
        try:
            reader(path)
        except InputError as error:
            refused.append(error)
    if refused:
        raise refused[0]


def _through_vips(path: Path) -> None:
    raster = open_raster(path, ReadOptions(MAX_PIXELS))
    rows = sum(block.shape[0] for block in raster.blocks())
    assert rows == raster.height


def _through_pillow(path: Path) -> None:
    image = read_rgb8(path, MAX_PIXELS)
    assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    return exif.tobytes()


def _images() -> tuple[bytes, ...]:
    made = []
    for file_format, channels, options in (
        ("png", 3, {}),
        ("png", 4, {}),
        ("jpeg", 3, {"dpi": (72, 72)}),
        ("jpeg", 3, {"progressive": True}),
        ("tiff", 3, {"compression": "tiff_lzw"}),
        ("tiff", 1, {}),
        ("webp", 3, {}),
        ("bmp", 3, {}),
        ("gif", 1, {}),
        ("avif", 3, {}),
        ("jpeg", 3, {"exif": _exif(), "xmp": b"<x:xmpmeta/>"}),
        ("tiff", 3, {"exif": _exif()}),
    ):
        file = io.BytesIO()
        pixels = photo(11, 13, channels)
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, file_format, **options)
        made.append(file.getvalue())
    return tuple(made)


def _report_with(name: str) -> Read:
    def read(folder: Path, data: bytes) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        page = render_report(read_report_data(folder))
        page.encode()

    return read


def _metrics() -> bytes:
    return json.dumps(
        {
            "validation": {"psnr": 30.0, "ssim": 0.9, "fab": 6.5},
            "calibrated_alpha": {"smallest": 1.0, "largest": 4.0},
        }
    ).encode()


def _timing() -> bytes:
    return json.dumps({"seconds": 3.0, "patches_per_second": 20.0}).encode()


def _quality() -> bytes:
    row = {"psnr": 30.0, "ssim": 0.9, "seconds": 1.0, "fab": 6.1, "bypassed": 0.0, "bitops_tile_T": 0.1}
    results = {"tiles": {"set": {"bicubic": row, "cabm": row}}}
    return json.dumps({"protocol": {"tiles": "24"}, "environment": {}, "results": results}).encode()


def _read_resume_state(folder: Path, data: bytes) -> None:
    """Resume from a damaged state: training starts over, resumes, or stops at weights that are not finite.

    Finite numbers are a valid state, even if wrong. A stage reports divergence in one line.
    """
    from cabm.errors import TrainingDiverged
    from cabm.project.schedule import Schedule
    from cabm.training.loop import TrainingPlan, train
    from cabm.training.losses import LossWeights, Objective

    path = folder / "state.safetensors"
    path.write_bytes(data)
    model = _small_float()
    plan = TrainingPlan(steps=4, rates={"weights": 1e-3}, schedule=Schedule(), ema_decay=0.5)
    try:
        train(model, Objective(LossWeights(), None), _Patches(), plan, resume_file=path)
    except TrainingDiverged as error:
        raise InputError(str(error)) from None


def _small_float() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("edsr", 2, Precision("float"), {"num_features": 2, "num_blocks": 1})


class _Patches:
    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(step)
        low = torch.randint(0, 256, (1, 3, 8, 8), generator=generator, dtype=torch.uint8)
        return low, low.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _resume_state(folder: Path) -> bytes:
    from safetensors.torch import load_file, save_file

    from cabm.project.schedule import Schedule
    from cabm.training.loop import TrainingPlan, train
    from cabm.training.losses import LossWeights, Objective
    from cabm.training.state import OLD_FORMAT

    path = folder / "state.safetensors"
    plan = TrainingPlan(
        steps=3, rates={"weights": 1e-3}, schedule=Schedule(), ema_decay=0.5, checkpoint_seconds=0
    )
    train(_small_float(), Objective(LossWeights(), None), _Patches(), plan, resume_file=path)
    # of the older version without a checksum, which would refuse nearly every mutation
    save_file(load_file(path), path, {"format": OLD_FORMAT, "step": "3", "history": "[]"})
    return path.read_bytes()


def split_safetensors(data: bytes) -> tuple[bytes, bytes]:
    """Split a safetensors file into its header (JSON) and the bytes of its tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def join_safetensors(header: bytes, body: bytes) -> bytes:
    """Return a safetensors file of a header and the bytes of its tensors."""
    return struct.pack("<Q", len(header)) + header + body


__all__ = ["Target", "join_safetensors", "outcome", "safetensors_bytes", "split_safetensors", "targets"]
