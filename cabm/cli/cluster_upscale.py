"""`cabm cluster upscale`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cabm.cli import upscale_options as options
from cabm.cli.terminal import echo, fail, interrupted, sigterm_interrupts
from cabm.errors import InputError
from cabm.imaging.formats import DEFAULT_QUALITY
from cabm.imaging.search import left_out

if TYPE_CHECKING:
    from cabm.cluster.job import ClusterJob, ClusterRequest, Tally

_CLUSTER = "Cluster"

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="SOURCE", help="Folder or s3://BUCKET/FOLDER, searched with its subfolders."),
]
OutputOption = Annotated[
    str,
    typer.Option("-o", "--output", metavar="PLACE", help="Folder or s3://BUCKET/FOLDER for the results."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        metavar="HOST:PORT",
        help="Running Ray cluster, or auto to find it. Default: a cluster on this machine, for this job.",
        rich_help_panel=_CLUSTER,
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Number of processes, each with its own model. Default: one per CPU or, on GPUs, per GPU.",
        rich_help_panel=_CLUSTER,
    ),
]
ThreadsOption = Annotated[
    int, typer.Option(min=1, metavar="N", help="CPU threads of each worker.", rich_help_panel=_CLUSTER)
]
MaxFailuresOption = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="Stop when N images have failed.", rich_help_panel=_CLUSTER),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Print the traceback of unexpected errors.",
        rich_help_panel=options.MESSAGES,
    ),
]


def upscale_on_cluster(
    context: typer.Context,
    source: SourceArgument,
    output: OutputOption,
    address: AddressOption = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = 1,
    max_failures: MaxFailuresOption = 10_000,
    model: options.Model = "edsr_x4",
    scale: options.Scale = None,
    size: options.Size = None,
    width: options.Width = None,
    height: options.Height = None,
    factor: options.Factor = None,
    max_side: options.MaxSide = None,
    passes: options.Passes = 1,
    file_format: options.Format = None,
    quality: options.Quality = DEFAULT_QUALITY,
    overwrite: options.Overwrite = False,
    max_pixels: options.MaxPixels = None,
    to_srgb: options.ToSrgb = False,
    strip: options.Strip = False,
    damaged: options.Damaged = False,
    all_frames: options.AllFrames = False,
    overlap: options.Overlap = "6",
    tile: options.Tile = None,
    engine: options.Engine = options.EngineName.auto,
    device: options.Device = options.DeviceName.auto,
    alpha: options.Alpha = options.AlphaName.network,
    report: options.Report = False,
    verbose: VerboseOption = False,
    quiet: options.Quiet = False,
) -> None:
    """Upscale a folder or bucket on a Ray cluster, or with many processes on this machine.

    Names, pixels and errors are those of `cabm upscale`. A worker that dies is
    replaced. Run an interrupted command again to upscale what is missing.

    Examples:

      cabm cluster upscale s3://photos/in -o s3://photos/out --address auto

      cabm cluster upscale photos/ -o upscaled/ --workers 8 --format jpeg
    """
    from cabm.cluster.job import ClusterRequest
    from cabm.imaging.frames import FRAME_FORMATS

    if all_frames and file_format not in FRAME_FORMATS:
        raise InputError(
            "--all-frames: add --format tiff, webp or png; results are named before images are read"
        )
    upscale = options.upscale_request(context, (source,), output)
    request = ClusterRequest(upscale, address, workers, max_failures)
    run(request, report=report, verbose=verbose, quiet=quiet)


def run(request: ClusterRequest, *, report: bool, verbose: bool, quiet: bool) -> None:
    """Carry out a request and print what happened.

    Raises:
        InputError: the request cannot be carried out, or the only image failed.
    """
    from cabm.cluster.job import cluster_job

    try:
        # Ray installs a SIGTERM handler of its own when it starts, so ours comes after it
        with cluster_job(request) as job, sigterm_interrupts():
            job.find()
            if job.unsupported and not quiet:
                echo(f"cabm: {left_out(job.unsupported)}", err=True)
            _run(job, quiet)
    except KeyboardInterrupt:
        interrupted()
    tally = job.tally
    for address, number in job.deaths.items():
        workers = "a worker" if number == 1 else f"{number} workers"
        echo(f"cabm: {workers} died on {address}", err=True)
    if not quiet:
        echo(summary(tally))
    if report and tally.computed:
        echo(describe(tally, job.num_workers, request.threads))
    left = job.num_images - tally.finished - tally.left_out - len(tally.failures)
    if left:
        echo(f"cabm: stopped after {len(tally.failures)} failures (--max-failures), {left} to do", err=True)
    if tally.failures:
        fail(tally.failures, job.num_images + tally.kept, verbose=verbose)


def summary(tally: Tally) -> str:
    """Return what a job did, in one line."""
    from cabm.imaging.mark import results_left_out

    parts = []
    if tally.finished or not tally.kept:
        parts.append(f"wrote {tally.finished} image{'' if tally.finished == 1 else 's'}")
    if tally.kept:
        parts.append(f"kept {tally.kept} that exist (--overwrite replaces them)")
    if tally.beside + tally.left_out:
        parts.append(results_left_out(tally.beside + tally.left_out))
    return "; ".join(parts)


def describe(tally: Tally, num_workers: int, threads: int) -> str:
    """Return what a job took, as several lines."""
    number = tally.computed
    return "\n".join(
        [
            f"  workers  {num_workers} of {threads} thread{'' if threads == 1 else 's'}",
            f"  CPU      {tally.cpu_seconds / number:.2f} s per image",
            f"  read     {tally.bytes_read / number / 1e6:.2f} MB per image",
            f"  written  {tally.bytes_written / number / 1e6:.2f} MB per image",
            f"  memory   {tally.peak_bytes / 1e6:.0f} MB at most in one worker",
        ]
    )


def _run(job: ClusterJob, quiet: bool) -> None:
    """Run the job with a progress bar, and print the notes on its images."""
    from tqdm import tqdm

    disable = True if quiet else None  # None: the bar is shown on terminals only
    with tqdm(total=job.num_images, unit="image", disable=disable, dynamic_ncols=True) as bar:
        for outcome in job.run():
            bar.update()
            if outcome.notes and not quiet:
                echo(f"{outcome.source}: {'; '.join(outcome.notes)}", err=True)
