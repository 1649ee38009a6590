"""`cabm upscale --ray`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

from cabm.cli.terminal import echo, fail, sigterm_interrupts
from cabm.errors import InputError

if TYPE_CHECKING:
    from cabm.cluster.ray_job import Cluster, Job
    from cabm.cluster.stores import Store
    from cabm.cluster.work import Item, Outcome
    from cabm.upscaling.jobs import Options
    from cabm.upscaling.upscaler import Upscaler


@dataclass(frozen=True)
class ClusterOptions:
    """What only ``--ray`` takes.

    Attributes:
        address: of the cluster; None: one on this machine.
        workers: processes; None: as many as there are processors or GPUs for.
        max_failures: images that may fail before the job is stopped.
    """

    address: str | None
    workers: int | None
    max_failures: int


@dataclass
class Tally:
    """What a job has done so far.

    Attributes:
        kept: images whose result was there before.
        finished: images that were upscaled, now or by a worker that died afterwards.
        failures: reasons.
        computed: images that the following numbers are of.
        cpu_seconds, bytes_read, bytes_written: of all these.
        peak_bytes: the most memory that a worker had.
    """

    kept: int = 0
    finished: int = 0
    failures: list[str] = field(default_factory=list)
    computed: int = 0
    cpu_seconds: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    peak_bytes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count an image."""
        if outcome.reason:
            self.failures.append(outcome.reason)
            return
        self.finished += 1
        if outcome.computed:
            self.computed += 1
            self.cpu_seconds += outcome.cpu_seconds
            self.bytes_read += outcome.bytes_read
            self.bytes_written += outcome.bytes_written
            self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)


def upscale_at_scale(
    inputs: list[str],
    output: str | None,
    upscaler: Upscaler,
    options: Options,
    on: ClusterOptions,
    *,
    file_format: str | None,
    load: dict[str, Any],
    report: bool,
    quiet: bool,
) -> None:
    """Upscale the images of a folder or a bucket on a Ray cluster.

    Args:
        inputs: one folder or URL.
        output: a folder or URL.
        upscaler: the model, on this machine, which has checked it and its tiles.
        options: how files are read and written.
        on: the cluster.
        file_format: of the outputs.
        load: as for `Upscaler.load`, for the workers.
        report: print what it took.
        quiet: print errors only.

    Raises:
        InputError: something is wrong with the request, or the only image failed.
    """
    from cabm.cluster.ray_job import Job, cluster
    from cabm.cluster.stores import open_store
    from cabm.cluster.work import Recipe, model_files

    if len(inputs) != 1 or output is None:
        raise InputError("--ray upscales one folder or s3://BUCKET/FOLDER into another; name it by -o")
    source, target = open_store(inputs[0]), open_store(output)
    source.check_exists()
    target.check_writable()
    threads = load["threads"] or 1
    local_cpus = on.workers * threads if on.workers else max(os.cpu_count() or 1, threads)
    job_name = uuid.uuid4().hex[:12]
    tally = Tally()
    try:
        # Ray takes SIGTERM for itself, so ours comes after
        with cluster(on.address, local_cpus=local_cpus) as offered, sigterm_interrupts():
            device = _device(offered, load["device"], load["engine"])
            room = offered.room(device, threads)
            if not room:
                needed = "a GPU" if device == "cuda" else f"{threads} CPUs"
                raise InputError(f"no machine has {needed} for a worker; see --device and --threads")
            num_workers = on.workers or room
            load |= {"device": device, "threads": threads}
            files = model_files(upscaler.directory)
            recipe = Recipe(source, target, job_name, files, options=options, **load)
            items = _items(source, target, tally, upscaler.scale, file_format, options.overwrite)
            job = Job(recipe, num_workers, items)
            if not job.num_items and not tally.kept:
                raise InputError(f"{source.url}: no images there (PNG, JPEG, WebP, TIFF or BMP)")
            _run(job, tally, on.max_failures, quiet)
            deaths = job.deaths()
    except KeyboardInterrupt:
        echo("cabm: interrupted; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
    finally:
        source.clean(job_name)
        target.clean(job_name)
    for address, number in deaths.items():
        workers = "a worker" if number == 1 else f"{number} workers"
        echo(f"cabm: {workers} died at {address}", err=True)
    if not quiet:
        echo(summary(tally))
    if report and tally.computed:
        echo(cost(tally, num_workers, threads))
    left = job.num_items - tally.finished - len(tally.failures)
    if left:
        echo(f"cabm: stopped at {len(tally.failures)} failures (--max-failures), {left} to do", err=True)
    if tally.failures:
        fail(tally.failures, job.num_items + tally.kept)


def summary(tally: Tally) -> str:
    """Return what a job did, in one line for people."""
    line = f"wrote {tally.finished} image{'' if tally.finished == 1 else 's'}"
    if tally.kept:
        line += f"; kept {tally.kept} that exist (--overwrite replaces them)"
    return line


def cost(tally: Tally, num_workers: int, threads: int) -> str:
    """Return what a job took, as lines for people."""
    number = tally.computed
    return "\n".join(
        [
            f"  workers  {num_workers} of {threads} thread{'' if threads == 1 else 's'}",
            f"  CPU      {tally.cpu_seconds / number:.2f} s an image",
            f"  read     {tally.bytes_read / number / 1e6:.2f} MB an image",
            f"  written  {tally.bytes_written / number / 1e6:.2f} MB an image",
            f"  memory   {tally.peak_bytes / 1e6:.0f} MB at most in a worker",
        ]
    )


def _device(offered: Cluster, device: str, engine: str) -> str:
    """Where workers compute: on GPUs if the cluster has any, unless something else was asked for."""
    if device == "auto":
        return "cuda" if offered.num_gpus and engine != "int8" else "cpu"
    return device


def _items(
    source: Store, target: Store, tally: Tally, scale: int, file_format: str | None, overwrite: bool
) -> Iterator[Item]:
    """What there is to do; what is done already is counted."""
    from cabm.cluster.work import find_items

    for item, exists in find_items(source, target, scale=scale, file_format=file_format):
        if exists and not overwrite:
            tally.kept += 1
        else:
            yield item


def _run(job: Job, tally: Tally, max_failures: int, quiet: bool) -> None:
    from tqdm import tqdm

    disable = True if quiet else None  # None: only on a terminal
    with tqdm(total=job.num_items, unit="image", disable=disable, dynamic_ncols=True) as bar:
        for outcome in job.run():
            tally.add(outcome)
            bar.update()
            if outcome.notes and not quiet:
                echo(f"{outcome.source}: {'; '.join(outcome.notes)}", err=True)
            if len(tally.failures) >= max_failures:
                return
