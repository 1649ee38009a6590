"""The ``prepare`` section of params.yaml: sources of photographs, and which patches to draw."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Discriminator,
    Field,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)

from cabm.data.layout import Pair, benchmark_pairs, div2k_pairs, div8k_pairs, folder_pairs
from cabm.errors import require

Count = Annotated[StrictInt, Field(ge=1)]

# Photographs inside the wheels of scikit-image and scikit-learn (which MLflow needs, too), so that nothing
# is downloaded.
# The motorcycles are a stereo pair and stay in one part.
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


class _Source(BaseModel, extra="forbid", frozen=True):
    pass


class SampleSource(_Source):
    """Photographs inside the wheels of scikit-image and scikit-learn."""

    source: Literal["sample"]

    name: str = "sample"
    """Name of the set in results."""

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the photographs of one part."""
        require("source: sample", "skimage", "sklearn")
        for entry in SAMPLE[part]:
            package, _, inside = entry.partition("/")
            spec = find_spec(package)
            assert spec is not None and spec.origin is not None
            path = Path(spec.origin).parent / inside
            yield Pair(path.stem, path)


class FolderSource(_Source):
    """A folder of high-resolution images, with or without a folder of low-resolution ones."""

    source: Literal["folder"]

    path: Path
    """Folder of high-resolution images."""

    name: str | None = None
    """Name of the set in results. Default: the name of the folder."""

    low_resolution: Path | None = None
    """Folder of low-resolution images with the same names. Default: computed with MATLAB-exact bicubic."""

    recursive: bool = False
    """Include subfolders."""

    halve: bool = False
    """Halve the images first (bicubic), to reduce noise and compression artefacts."""

    @model_validator(mode="after")
    def _halved_images_have_no_other_low_resolution(self) -> FolderSource:
        if self.halve and self.low_resolution is not None:
            raise ValueError("halve changes the originals, so low_resolution would not match them")
        return self

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the images of the folder, sorted by path."""
        yield from folder_pairs(
            self.path, scale, low=self.low_resolution, recursive=self.recursive, halve=self.halve
        )


class Div2kSource(_Source):
    """DIV2K as distributed: images 1 to 800 for training, 801 to 900 for validation and test."""

    source: Literal["div2k"]

    root: Path
    """Folder with DIV2K_train_HR and, optionally, DIV2K_train_LR_bicubic."""

    name: str = "DIV2K"
    """Name of the set in results."""

    first: Count | None = None
    """First image number. Default: that of the part."""

    last: Count | None = None
    """Last image number. Default: that of the part."""

    @model_validator(mode="after")
    def _last_is_not_before_first(self) -> Div2kSource:
        if self.first is not None and self.last is not None and self.first > self.last:
            raise ValueError(f"first {self.first} is after last {self.last}")
        return self

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the images of one part."""
        start, end = (1, 800) if part == "train" else (801, 900)
        yield from div2k_pairs(self.root, scale, self.first or start, self.last or end)


class BenchmarkSource(_Source):
    """Set5, Set14, B100, Urban100 and similar: ROOT/NAME/HR and, optionally, ROOT/NAME/LR_bicubic/X4."""

    source: Literal["benchmark"]

    root: Path
    """Folder of the sets."""

    name: str
    """Folder of the set inside ``root``, and its name in results."""

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the images of the set."""
        yield from benchmark_pairs(self.root / self.name, scale)


class Div8kSource(_Source):
    """Test2K, Test4K and Test8K, cut from DIV8K: ROOT/HR and, optionally, ROOT/LR."""

    source: Literal["test2k", "test4k", "test8k"]

    root: Path
    """Folder of HR and LR."""

    @property
    def name(self) -> str:
        """Name of the set in results."""
        return self.source

    def pairs(self, part: Part, scale: int) -> Iterator[Pair]:
        """Yield the images of the set."""
        yield from div8k_pairs(self.root, scale)


TrainSource = Annotated[SampleSource | FolderSource | Div2kSource, Field(discriminator="source")]
TestSource = Annotated[
    SampleSource | FolderSource | Div2kSource | BenchmarkSource | Div8kSource,
    Field(discriminator="source"),
]


class HoldOut(_Source):
    """Validation images held out of the training images."""

    hold_out: Count
    """Number of images, spread evenly over the training images."""


def _kind_of_validation(value: Any) -> str:
    held = "hold_out" in value if isinstance(value, dict) else isinstance(value, HoldOut)
    return "held out" if held else "a source"


class Sampling(_Source):
    """How training patches are drawn."""

    kind: Literal["uniform", "informative"] = "uniform"
    """All positions with equal probability, or only those with the largest error of bilinear upscaling."""

    patch: Annotated[StrictInt, Field(ge=8)] = 24
    """Side of the ranked patches in low-resolution pixels; must equal the patch of the training stages."""

    portion: Annotated[StrictFloat, Field(gt=0, le=1)] = 0.1
    """Share of the positions to keep."""

    variant: Literal["greedy", "nms", "darts"] = "greedy"
    """Keep all of them, drop overlapping ones in order of error, or drop them in random order."""


class PrepareSettings(_Source):
    """The ``prepare`` section of params.yaml."""

    train: Annotated[tuple[TrainSource, ...], Field(min_length=1)]
    """Sources of training images."""

    validation: Annotated[
        Annotated[TrainSource, Tag("a source")] | Annotated[HoldOut, Tag("held out")],
        Discriminator(_kind_of_validation),
    ]
    """A source, or the number of training images to hold out."""

    test: Annotated[tuple[TestSource, ...], Field(min_length=1)]
    """Test sets."""

    sampling: Sampling = Sampling()
    """How training patches are drawn."""

    max_pixels: Count = 200_000_000
    """Largest image to decode, width times height."""

    @model_validator(mode="after")
    def _test_sets_have_different_names(self) -> PrepareSettings:
        names = [test_name(source) for source in self.test]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"test: two sets are named {name!r}; rename one")
            if name in ("", ".", "..") or set(name) & set("/\\") or not name.isprintable():
                raise ValueError(f"test: {name!r} cannot be the name of a set")
        return self


def test_name(source: TestSource) -> str:
    """Return the name of a test set in results."""
    if isinstance(source, FolderSource):
        return source.name if source.name is not None else source.path.name
    return source.name
