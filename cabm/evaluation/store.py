"""Quality of a model on a packed store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cabm.data.store import PackedStore, check_measurable_size
from cabm.evaluation.quality import psnr_y, ssim_y
from cabm.tables.cost import fab
from cabm.upscaling.tiles import TiledResult

MAX_PSNR = 100.0
"""PSNR in dB recorded for an image without any error, because means and JSON need a finite number.

An error of one level in one of 150 000 values gives the same PSNR. Images of a single colour reach it,
even by bicubic upscaling.
"""


@dataclass(frozen=True)
class ImageResult:
    """Measurements of one image.

    Attributes:
        name: name of the image.
        psnr, ssim: on Y; PSNR in dB, at most `MAX_PSNR`.
        fab: mean bits over the tiles that are computed and their adaptive layers; None for models without
            bits.
        bypassed: share of the tiles' pixels that kept the bicubic upscaling, 0..1.
        seconds: wall-clock time of the upscaling.
        result: the upscaled image and its tiles.
    """

    name: str
    psnr: float
    ssim: float
    fab: float | None
    bypassed: float
    seconds: float
    result: TiledResult


def evaluate_store(
    store: PackedStore,
    upscale: Callable[[np.ndarray], TiledResult],
    *,
    max_pixels: int | None = None,
    images: Iterable[int] | None = None,
) -> Iterator[ImageResult]:
    """Upscale every image of a store and compare it with its original.

    Args:
        store: pairs of images.
        upscale: takes (h, w, 3) uint8.
        max_pixels: skip low-resolution images larger than this.
        images: indices of the images to measure; all by default.

    Raises:
        InputError: an image is too small to be measured.
    """
    check_measurable(store)
    for index in range(len(store)) if images is None else images:
        low_resolution = store.lr(index)
        if max_pixels is not None and low_resolution[..., 0].size > max_pixels:
            continue
        started = time.perf_counter()
        result = upscale(low_resolution)
        seconds = time.perf_counter() - started
        original = store.hr(index)
        yield ImageResult(
            name=store.names[index],
            psnr=min(psnr_y(result.image, original, store.scale), MAX_PSNR),
            ssim=ssim_y(result.image, original, store.scale),
            fab=None if result.bits is None else fab(result.bits),
            bypassed=float(result.bypassed.mean()),
            seconds=seconds,
            result=result,
        )


def check_measurable(store: PackedStore) -> None:
    """Refuse a store with images that SSIM cannot be computed on.

    Raises:
        InputError: names the first image that is too small.
    """
    for index, name in enumerate(store.names):
        height, width = (side * store.scale for side in store.lr_shape(index))
        check_measurable_size(store.directory, name, height, width, store.scale)


def mean_results(results: list[ImageResult]) -> dict[str, float]:
    """Average PSNR and SSIM over images, FAB and bypass over tiles, as papers do; add up the seconds."""
    means = {
        "psnr": float(np.mean([r.psnr for r in results])),
        "ssim": float(np.mean([r.ssim for r in results])),
        "seconds": float(np.sum([r.seconds for r in results])),
    }
    tiles = [r.result for r in results if r.result.bits is not None]
    return means | mean_bits([t.bits for t in tiles], [t.bypassed for t in tiles])


def mean_bits(bits: Sequence[np.ndarray], bypassed: Sequence[np.ndarray]) -> dict[str, float]:
    """Average bits and bypass over the tiles of all images.

    Args:
        bits: for each image, the bits (N, L) of its tiles.
        bypassed: for each image, the share (N,) of each tile that was bypassed.

    Returns:
        ``bypassed`` and, if any tile was computed, ``fab``; empty without images.
    """
    if not bits:
        return {}
    rows = np.concatenate(bits)
    means = {"bypassed": float(np.concatenate(bypassed).mean())}
    return means | ({"fab": fab(rows)} if rows.any() else {})
