"""`cabm cluster upscale`: upscale the images of a folder or bucket on a cluster."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cabm.cluster.local_store import LocalStore
from cabm.cluster.ray_job import Cluster, RayJob, cluster
from cabm.cluster.s3_store import S3Store
from cabm.cluster.stores import Store
from cabm.cluster.work import Item, Outcome, Recipe, find_items, model_files
from cabm.errors import InputError
from cabm.imaging.formats import READABLE
from cabm.upscaling.request import UpscaleRequest


@dataclass(frozen=True)
class ClusterRequest:
    """What to upscale, and on which cluster.

    Attributes:
        upscale: what to upscale and how; one input, and an output.
        address: of the cluster, ``HOST:PORT`` or ``auto``; None: one on this machine, for this job only.
        workers: number of processes; None: as many as the cluster has processors or GPUs for.
        max_failures: number of failed images at which the job stops.
    """

    upscale: UpscaleRequest
    address: str | None = None
    workers: int | None = None
    max_failures: int = 10_000

    @property
    def threads(self) -> int:
        """CPU threads of each worker."""
        return self.upscale.threads or 1


@dataclass
class Tally:
    """What a job has done so far.

    Attributes:
        kept: images whose result existed.
        beside: results of earlier jobs beside their originals; they never reach a worker.
        left_out: other results of earlier jobs, which workers find.
        finished: images that were upscaled, including those whose worker died afterwards.
        failures: outcomes of images that failed.
        computed: images that the following numbers cover.
        cpu_seconds, bytes_read, bytes_written: sums over these images.
        peak_bytes: the most memory that a worker used.
    """

    kept: int = 0
    beside: int = 0
    left_out: int = 0
    finished: int = 0
    failures: list[Outcome] = field(default_factory=list)
    computed: int = 0
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count an image."""
        if outcome.reason:
            self.failures.append(outcome)
            return
        if outcome.left_out:
            self.left_out += 1
            return
        self.finished += 1
        if outcome.computed:
            self.computed += 1
            self.cpu_seconds += outcome.cpu_seconds
            self.bytes_read += outcome.bytes_read
            self.bytes_written += outcome.bytes_written
            self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)


class ClusterJob:
    """A job on a connected cluster; made by `cluster_job`.

    Attributes:
        num_workers: number of workers.
        num_images: images to upscale; known after `find`.
        tally: what the job has done so far.
        unsupported: names of images that are not supported; known after `find`.
        deaths: images that workers died on, each with their number; known after `run`.

    Raises:
        InputError: no machine of the cluster has room for a worker.
    """

    def __init__(self, request: ClusterRequest, offered: Cluster, recipe: Recipe, scale: int) -> None:
        upscale, threads = request.upscale, request.threads
        device = upscale.device
        if device == "auto":
            device = "cuda" if offered.num_gpus and upscale.engine != "int8" else "cpu"
        room = offered.room(device, threads)
        if not room:
            needed = "a GPU" if device == "cuda" else f"{threads} CPUs"
            raise InputError(f"no machine has {needed} for a worker; see --device and --threads")
        self.num_workers = request.workers or room
        self.num_images = 0
        self.tally = Tally()
        self.deaths: dict[str, int] = {}
        self.unsupported: list[str] = []
        self._recipe = replace(recipe, request=replace(upscale, device=device, threads=threads))
        self._scale = scale
        self._max_failures = request.max_failures

    def find(self) -> None:
        """Find the images to upscale.

        Raises:
            InputError: there is no image.
        """
        self._job = RayJob(self._recipe, self.num_workers, self._items())
        self.num_images = self._job.num_items
        if not self.num_images and not self.tally.kept:
            raise InputError(f"{self._recipe.source.url}: no images in this place ({READABLE})")

    def run(self) -> Iterator[Outcome]:
        """Upscale the images; yield the outcome of each, in any order. Too many failures end this early.

        Raises:
            InputError: no worker can run the model.
        """
        for outcome in self._job.run():
            self.tally.add(outcome)
            yield outcome
            if len(self.tally.failures) >= self._max_failures:
                break
        self.deaths = self._job.deaths()

    def _count_results(self, number: int) -> None:
        self.tally.beside += number

    def _items(self) -> Iterator[Item]:
        """Yield the images to upscale; count those whose result is kept."""
        recipe, request = self._recipe, self._recipe.request
        found = find_items(
            recipe.source,
            recipe.output,
            scale=self._scale,
            size=request.size,
            file_format=request.file_format,
            on_unsupported=self.unsupported.extend,
            on_results=self._count_results,
        )
        for item, exists in found:
            if exists and not request.overwrite:
                self.tally.kept += 1
            else:
                yield item


@contextmanager
def cluster_job(request: ClusterRequest) -> Iterator[ClusterJob]:
    """Connect to the cluster and the stores for the block, and remove temporary files after it.

    Raises:
        InputError: the model, a store or the cluster cannot be used, or Ray stopped the job.
    """
    upscale = request.upscale
    # each worker chooses its engine by its own machine; here the model and its tiles are checked
    upscaler = replace(upscale, engine="float", device="cpu").load()
    assert len(upscale.inputs) == 1 and upscale.output is not None
    source, output = open_store(upscale.inputs[0]), open_store(upscale.output)
    source.check_exists()
    output.check_writable()
    recipe = Recipe(source, output, uuid.uuid4().hex[:12], model_files(upscaler.directory), upscale)
    threads = request.threads
    local_cpus = request.workers * threads if request.workers else max(os.cpu_count() or 1, threads)
    try:
        with cluster(request.address, local_cpus=local_cpus) as offered:
            yield ClusterJob(request, offered, recipe, upscaler.scale)
    finally:
        source.clean(recipe.job)
        output.clean(recipe.job)


def open_store(place: str) -> Store:
    """Return the store for a folder or ``s3://BUCKET/FOLDER``.

    Raises:
        InputError: the URL is of another kind, or names no bucket.
    """
    scheme, separator, _ = place.partition("://")
    if not separator:
        return LocalStore(place)
    if scheme != "s3":
        raise InputError(f"{place}: {scheme}:// cannot be read; give a folder or s3://BUCKET/FOLDER")
    return S3Store(place)
