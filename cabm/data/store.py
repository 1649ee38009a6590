"""The packed store: image pairs in flat uint8 files with an index, which are memory-mapped.

Reading a training patch only copies the bytes of the patch. A store is a directory of three files:

    index.json   format and scale; name, size and offsets of each image; size and SHA-256 of the other files
    hr.bin       the high-resolution images, (H, W, 3) uint8, one after another
    lr.bin       the low-resolution images, (H / scale, W / scale, 3) uint8

The same pairs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from cabm.errors import InputError, describe
from cabm.files import atomic_directory, read_json

FORMAT = "cabm.packed/1"
HR_FILE, LR_FILE, INDEX_FILE = "hr.bin", "lr.bin", "index.json"

SSIM_WINDOW = 11
"""Side of the SSIM window in pixels; it must fit into a measured image inside the shaved border."""

Side = Annotated[int, Field(ge=1, le=1 << 20)]
Offset = Annotated[int, Field(ge=0)]

_MAX_NAME = 200  # characters


class _Strict(BaseModel, extra="forbid", frozen=True, strict=True):
    pass


class _Image(_Strict):
    name: str
    height: Side
    width: Side
    hr_offset: Offset
    lr_offset: Offset


class _File(_Strict):
    size: Offset
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Index(_Strict):
    format: Literal["cabm.packed/1"]
    scale: Annotated[int, Field(ge=1, le=64)]
    hr: _File
    lr: _File
    images: list[_Image]


class PackedStore:
    """Pairs of images in a directory that `pack` wrote, as memory-mapped views."""

    def __init__(self, directory: Path, index: _Index) -> None:
        self.directory = directory
        self.scale = index.scale
        self.names: tuple[str, ...] = tuple(image.name for image in index.images)
        self._index = index
        self._hr = np.memmap(directory / HR_FILE, np.uint8, "r")
        self._lr = np.memmap(directory / LR_FILE, np.uint8, "r")

    @classmethod
    def open(cls, directory: str | Path) -> PackedStore:
        """Open a store and check its index against the files.

        Raises:
            InputError: a file is missing, or the index is not one that `pack` writes.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory; run the prepare stage first")
        path = directory / INDEX_FILE
        try:
            index = _Index.model_validate(read_json(path))
        except ValidationError as error:
            raise InputError(
                f"{path}: not an index of {FORMAT}: {describe(error)}; run the prepare stage again"
            ) from None
        _check_index(directory, index)
        return cls(directory, index)

    def __len__(self) -> int:
        return len(self.names)

    def hr(self, image: int) -> np.ndarray:
        """Return one high-resolution image: a read-only (H, W, 3) uint8 view of the file."""
        entry = self._index.images[image]
        return _view(self._hr, entry.hr_offset, entry.height, entry.width)

    def lr(self, image: int) -> np.ndarray:
        """Return one low-resolution image: a read-only (H / scale, W / scale, 3) uint8 view."""
        entry = self._index.images[image]
        height, width = entry.height // self.scale, entry.width // self.scale
        return _view(self._lr, entry.lr_offset, height, width)

    def lr_shape(self, image: int) -> tuple[int, int]:
        """Return height and width of one low-resolution image without reading its pixels."""
        entry = self._index.images[image]
        return entry.height // self.scale, entry.width // self.scale

    @property
    def sha256(self) -> str:
        """Hash of the index, which contains all names and the hashes of all pixels."""
        return hashlib.sha256(self._index.model_dump_json().encode()).hexdigest()


def pack(
    pairs: Iterable[tuple[str, np.ndarray, np.ndarray]], directory: str | Path, scale: int
) -> PackedStore:
    """Write pairs of images as a store, with one pair in memory at a time.

    Args:
        pairs: (name, hr (H, W, 3) uint8, lr (H / scale, W / scale, 3) uint8).
        directory: the store; replaced when all pairs are written.
        scale: high-resolution pixels per low-resolution pixel.

    Raises:
        InputError: there are no pairs, or a name occurs twice or is not plain.
    """
    directory = Path(directory)
    images: list[_Image] = []
    names: set[str] = set()
    hashes = {HR_FILE: hashlib.sha256(), LR_FILE: hashlib.sha256()}
    sizes = {HR_FILE: 0, LR_FILE: 0}
    with atomic_directory(directory) as temporary:
        with (temporary / HR_FILE).open("wb") as hr_file, (temporary / LR_FILE).open("wb") as lr_file:
            for name, hr, lr in pairs:
                height, width = hr.shape[:2]
                assert hr.dtype == lr.dtype == np.uint8
                assert hr.shape == (height, width, 3)
                assert lr.shape == (height // scale, width // scale, 3)
                assert height % scale == width % scale == 0
                _check_name(name, names, directory)
                images.append(
                    _Image(
                        name=name,
                        height=height,
                        width=width,
                        hr_offset=sizes[HR_FILE],
                        lr_offset=sizes[LR_FILE],
                    )
                )
                for file, key, pixels in ((hr_file, HR_FILE, hr), (lr_file, LR_FILE, lr)):
                    data = np.ascontiguousarray(pixels).data
                    file.write(data)
                    hashes[key].update(data)
                    sizes[key] += data.nbytes
        if not images:
            raise InputError(f"{directory}: there are no images to pack")
        files = {key: _File(size=sizes[key], sha256=hashes[key].hexdigest()) for key in (HR_FILE, LR_FILE)}
        index = _Index(format=FORMAT, scale=scale, hr=files[HR_FILE], lr=files[LR_FILE], images=images)
        text = json.dumps(index.model_dump(), ensure_ascii=False, indent=1)
        (temporary / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
    return PackedStore.open(directory)


def check_measurable_size(where: str | Path, name: str, height: int, width: int, scale: int) -> None:
    """Refuse a high-resolution image that SSIM cannot be computed on.

    Args:
        where: the folder or setting to name in the error.
        name: name of the image.
        height, width: its size in pixels.
        scale: the border of the image that metrics leave out, in pixels.

    Raises:
        InputError: the image does not hold SSIM's window inside that border.
    """
    smallest = SSIM_WINDOW + 2 * scale
    if min(height, width) < smallest:
        raise InputError(
            f"{where}: image {name} of {width}x{height} pixels is too small to be measured at scale "
            f"{scale}; use images of at least {smallest}x{smallest}"
        )


def _view(flat: np.ndarray, offset: int, height: int, width: int) -> np.ndarray:
    # A plain array, because slicing the subclass np.memmap is slow.
    return np.asarray(flat)[offset : offset + height * width * 3].reshape(height, width, 3)


def _check_index(directory: Path, index: _Index) -> None:
    if not index.images:
        raise InputError(f"{directory / INDEX_FILE}: lists no images; run the prepare stage again")
    names: set[str] = set()
    for image in index.images:
        _check_name(image.name, names, directory / INDEX_FILE)
        if image.height % index.scale or image.width % index.scale:
            raise InputError(
                f"{directory / INDEX_FILE}: {image.name}: {image.width}x{image.height} is not a"
                f" multiple of the scale {index.scale}; run the prepare stage again"
            )
    for name, entry, shrink in ((HR_FILE, index.hr, 1), (LR_FILE, index.lr, index.scale)):
        path = directory / name
        if not path.is_file():
            raise InputError(f"{path}: no such file; run the prepare stage again")
        if path.stat().st_size != entry.size:
            raise InputError(
                f"{path}: has {path.stat().st_size} bytes, but {entry.size} in the index;"
                " run the prepare stage again"
            )
        end = 0
        # pack() leaves no gaps, so a gap or an overlap is damage.
        for image in index.images:
            offset = image.hr_offset if name == HR_FILE else image.lr_offset
            if offset != end:
                raise InputError(
                    f"{directory / INDEX_FILE}: {image.name}: starts at byte {offset} of {name},"
                    f" not at {end}; run the prepare stage again"
                )
            end += (image.height // shrink) * (image.width // shrink) * 3
        if end != entry.size:
            raise InputError(
                f"{directory / INDEX_FILE}: the images fill {end} bytes of {name}, which has"
                f" {entry.size}; run the prepare stage again"
            )


def check_image_name(name: str, where: Path) -> None:
    """Check that a name is a plain path component: figures and crops are named after images.

    Args:
        name: of the image.
        where: its file, for the message.

    Raises:
        InputError: it is not.
    """
    odd = [character for character in name if character in '/\\:*?"<>|' or not character.isprintable()]
    if odd:
        why = f"contains {odd[0]!r}"
    elif name in ("", ".", ".."):
        why = "is no name"
    elif len(name) > _MAX_NAME:
        why = f"has more than {_MAX_NAME} characters"
    else:
        return
    raise InputError(f"{where}: {name!r} is not a plain image name: it {why}; rename the image")


def _check_name(name: str, seen: set[str], where: Path) -> None:
    """Check that a name is plain and new."""
    check_image_name(name, where)
    if name in seen:
        raise InputError(f"{where}: two images are named {name!r}; rename one")
    seen.add(name)


def data_hash(directory: Path) -> str | None:
    """Return one hash of all packed stores in a directory; None if there are none.

    Raises:
        InputError: a store is damaged.
    """
    stores = sorted(path.parent for path in directory.rglob("index.json"))
    lines = [f"{store.relative_to(directory)} {PackedStore.open(store).sha256}" for store in stores]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None
