"""Where photographs come from: folders in the layouts that people have, and what ships with libraries."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from cabm.data.layout import Pair, benchmark_pairs, div2k_pairs, div8k_pairs, folder_pairs

Count = Annotated[int, Field(ge=1)]

# Natural photographs inside the wheels of scikit-image and scikit-learn; nothing is downloaded.
# The motorcycles are a stereo pair, so both are in one part.
SAMPLE = {
    "train": (
        "sklearn/datasets/images/china.jpg",
        "skimage/data/astronaut.png",
        "skimage/data/motorcycle_left.png",
        "skimage/data/motorcycle_right.png",
        "skimage/data/brick.png",
        "skimage/data/grass.png",
        "skimage/data/gravel.png",
    ),
    "validation": ("skimage/data/coffee.png", "skimage/data/camera.png"),
    "test": (
        "sklearn/datasets/images/flower.jpg",
        "skimage/data/chelsea.png",
        "skimage/data/rocket.jpg",
    ),
}
Part = Literal["train", "validation", "test"]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampleSource(_Source):
    """Photographs that ship inside the wheels of scikit-image and scikit-learn."""

    source: Literal["sample"]

    name: str = "sample"
    """Name of the set in results."""

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the photographs of a part."""
        for entry in SAMPLE[part]:
            package, _, inside = entry.partition("/")
            spec = find_spec(package)
            assert spec is not None and spec.origin is not None, f"{package} is a dependency"
            path = Path(spec.origin).parent / inside
            yield Pair(path.stem, path)


class FolderSource(_Source):
    """A folder of high-resolution images, with low-resolution ones beside it or made by us."""

    source: Literal["folder"]

    path: Path
    """Folder of high-resolution images."""

    name: str | None = None
    """Name of the set in results; the folder's by default."""

    low_resolution: Path | None = None
    """Folder of low-resolution images of the same names; made by MATLAB-exact bicubic if not given."""

    recursive: bool = False
    """Take subfolders too."""

    halve: bool = False
    """Halve the images first (bicubic), which cleans compressed or noisy photographs."""

    @model_validator(mode="after")
    def _halved_images_have_no_other_low_resolution(self) -> FolderSource:
        if self.halve and self.low_resolution is not None:
            raise ValueError("halve changes the originals, so that low_resolution would not fit them")
        return self

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the folder's images in the order of their names."""
        yield from folder_pairs(
            self.path, scale, low=self.low_resolution, recursive=self.recursive, halve=self.halve
        )


class Div2kSource(_Source):
    """DIV2K as it is distributed: 0001-0800 for training, 0801-0900 for validation and test."""

    source: Literal["div2k"]

    root: Path
    """Folder that holds DIV2K_train_HR and, if there, DIV2K_train_LR_bicubic."""

    name: str = "DIV2K"
    """Name of the set in results."""

    first: Count | None = None
    """First image number, to take fewer."""

    last: Count | None = None
    """Last image number."""

    @model_validator(mode="after")
    def _last_is_not_before_first(self) -> Div2kSource:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ValueError(f"first {self.first} is after last {self.last}")
        return self

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the part's images."""
        start, end = (1, 800) if part == "train" else (801, 900)
        yield from div2k_pairs(self.root, scale, self.first or start, self.last or end)


class BenchmarkSource(_Source):
    """Set5, Set14, B100, Urban100 and their like: ROOT/NAME/HR and, if there, LR_bicubic/X4/NAMEx4.png."""

    source: Literal["benchmark"]

    root: Path
    """Folder that holds the sets."""

    name: str
    """The set's folder."""

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the set's images."""
        yield from benchmark_pairs(self.root / self.name, scale)


class Div8kSource(_Source):
    """Test2K, Test4K, Test8K: ROOT/HR and, if there, ROOT/LR."""

    source: Literal["test2k", "test4k", "test8k"]

    root: Path
    """Folder that holds HR and LR."""

    @property
    def name(self) -> str:
        """Name of the set in results."""
        return self.source

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the set's images."""
        yield from div8k_pairs(self.root, scale)


TrainSource = Annotated[SampleSource | FolderSource | Div2kSource, Field(discriminator="source")]
TestSource = Annotated[
    SampleSource | FolderSource | Div2kSource | BenchmarkSource | Div8kSource,
    Field(discriminator="source"),
]


class HoldOut(_Source):
    """Validation images taken out of the training images."""

    hold_out: Count
    """How many, spread evenly over the training images."""


def _kind_of_validation(value: Any) -> str:
    held = "hold_out" in value if isinstance(value, dict) else isinstance(value, HoldOut)
    return "held out" if held else "a source"


class Sampling(_Source):
    """Which training patches are drawn."""

    kind: Literal["uniform", "informative"] = "uniform"
    """All positions alike, or only those that bilinear upscaling gets most wrong (SamplingAug)."""

    patch: Annotated[int, Field(ge=8)] = 24
    """Side of the ranked patches in low-resolution pixels; the patch of the steps that train on them."""

    portion: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the positions that is kept."""

    variant: Literal["greedy", "nms", "darts"] = "greedy"
    """The hardest ones; the hardest that do not overlap; a random choice among the hard (dart throwing)."""


class PrepareSettings(_Source):
    """The ``prepare`` section of params.yaml."""

    train: Annotated[tuple[TrainSource, ...], Field(min_length=1)]
    """Sources of training images."""

    validation: Annotated[
        Annotated[TrainSource, Tag("a source")] | Annotated[HoldOut, Tag("held out")],
        Discriminator(_kind_of_validation),
    ]
    """A source, or how many training images are held out."""

    test: Annotated[tuple[TestSource, ...], Field(min_length=1)]
    """Test sets."""

    sampling: Sampling = Sampling()
    """Which training patches are drawn."""

    max_pixels: Count = 200_000_000
    """Largest image that is decoded."""

    @model_validator(mode="after")
    def _test_sets_have_names_of_their_own(self) -> PrepareSettings:
        names = [test_name(source) for source in self.test]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"test: two sets are called {name!r}; give one a name")
            if name in ("", ".", "..") or set(name) & set("/\\") or not name.isprintable():
                raise ValueError(f"test: {name!r} cannot name a set")
        return self


def test_name(source: TestSource) -> str:
    """Return the name of a test set in results."""
    if isinstance(source, FolderSource):
        return source.name if source.name is not None else source.path.name
    return source.name


def read_pairs(
    pairs: list[Pair], scale: int, max_pixels: int
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Decode pairs one by one: (name, hr (H,W,3) uint8, lr (H/scale,W/scale,3) uint8).

    Raises:
        InputError: an image cannot be read, or a low-resolution one has the wrong size.
    """
    for pair in pairs:
        yield pair.name, *pair.read(scale, max_pixels)
