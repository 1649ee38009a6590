"""`cabm upscale`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cabm.cli import upscale_options as options
from cabm.cli.outputs import check_no_url
from cabm.cli.pipes import piped
from cabm.cli.terminal import compiling_shown, echo, fail, interrupted, sigterm_interrupts
from cabm.errors import InputError, printable
from cabm.imaging.formats import DEFAULT_QUALITY
from cabm.machine.late_imports import torch_in_part
from cabm.machine.openmp import spin_briefly

if TYPE_CHECKING:
    from cabm.upscaling.jobs import Survey
    from cabm.upscaling.report import Report
    from cabm.upscaling.request import UpscaleRequest
    from cabm.upscaling.tasks import Task
    from cabm.upscaling.upscaler import Upscaler

InputsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="Images, and folders, which are searched with their subfolders; - is standard input.",
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="PATH",
        help="Folder for the results or, for one image, the file to write, or - for standard output."
        " Default: beside each input.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="CPU threads. Default: one per core.", rich_help_panel=options.TILES
    ),
]
BitMapOption = Annotated[
    Path | None,
    typer.Option(
        "--bit-map",
        metavar="FILE",
        help="Draw the bits of each tile over the image: .png, .svg or .pdf (one input).",
        rich_help_panel=options.MESSAGES,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Print the model and engine in use, and the traceback of unexpected errors.",
        rich_help_panel=options.MESSAGES,
    ),
]


def _moved(ray: bool) -> bool:
    if ray:
        raise InputError("--ray is now a command of its own: cabm cluster upscale SOURCE -o PLACE")
    return ray


@dataclass(frozen=True)
class Messages:
    """What to print about a request, besides errors.

    Attributes:
        report: what each image took.
        bit_map: file for a drawing of the bits; None: no drawing.
        verbose: the model and engine; tracebacks of unexpected errors.
        quiet: nothing else.
    """

    report: bool = False
    bit_map: Path | None = None
    verbose: bool = False
    quiet: bool = False


def upscale(
    context: typer.Context,
    inputs: InputsArgument,
    output: OutputOption = None,
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
    threads: ThreadsOption = None,
    report: options.Report = False,
    bit_map: BitMapOption = None,
    verbose: VerboseOption = False,
    quiet: options.Quiet = False,
    formats: options.Formats = False,
    ray: Annotated[bool, typer.Option("--ray", hidden=True, callback=_moved)] = False,
) -> None:
    """Upscale images of any size with a trained model.

    Reads and writes PNG, JPEG, WebP, TIFF and others (--formats) with 8 or 16
    bits: gray, palette, RGB, with or without alpha. CMYK and CIELab become
    sRGB. Keeps colour profile, EXIF, XMP, IPTC, PNG text, resolution and
    GeoTIFF tags, or names what a format cannot hold. Existing results are
    kept, so run an interrupted command again to upscale what is missing.

    Examples:

      cabm upscale photo.jpg

      cabm upscale scans/ -o upscaled/ --format tiff

      cabm upscale photo.jpg --size 3840x2160

      cabm upscale photos/ -o web/ --max-side 2048 --format jpeg

      cabm upscale a.png -o big.webp --quality 90 --report --bit-map bits.png

      curl -s https://example.org/a.jpg | cabm upscale - --format jpeg > big.jpg
    """
    spin_briefly()
    request = options.upscale_request(context, tuple(inputs), output)
    with torch_in_part(), piped(request) as pipes, compiling_shown(not quiet):
        run(pipes.request, Messages(report, bit_map, verbose, quiet), pipes.named)


def run(
    request: UpscaleRequest, messages: Messages, named: Callable[[str], str] = lambda text: text
) -> None:
    """Carry out a request and print what happened; ``named`` replaces names of files in messages.

    Raises:
        InputError: the request cannot be carried out, or the only image failed.
    """
    from cabm.cli.bit_map import check_bit_map, draw_bit_map
    from cabm.upscaling.jobs import run_job, survey
    from cabm.upscaling.tasks import plan_tasks

    inputs, output = _local(request)
    upscaler = request.load()
    if messages.verbose:
        echo(describe_model(upscaler), err=True)

    def note(line: str) -> None:
        if not messages.quiet:
            echo(f"cabm: {line}", err=True)

    unreadable: list[str] = []
    tasks = plan_tasks(
        inputs,
        output,
        scale=upscaler.scale,
        size=request.size,
        file_format=request.file_format,
        all_frames=request.all_frames,
        note=note,
        problem=unreadable.append,
    )
    found = survey(upscaler, tasks, request)
    if messages.bit_map is not None:
        check_bit_map(messages.bit_map, upscaler, tasks, found, overwrite=request.overwrite)
    done: list[Task] = []

    def on_done(task: Task, report: Report) -> None:
        done.append(task)
        _tell(task, report, messages, named)
        if messages.bit_map is not None:
            draw_bit_map(task, report, messages.bit_map, request.read_options)

    try:
        with sigterm_interrupts(), _progress(found, show=not messages.quiet) as (on_file, on_tiles):
            failures = run_job(
                upscaler, found, request, on_file=on_file, on_tiles=on_tiles, on_done=on_done
            )
    except KeyboardInterrupt:
        interrupted(f" with {len(found.todo) - len(done)} to do")
    if not messages.quiet and (done or found.kept):
        echo(named(summary(done, found)))
    for line in unreadable:
        echo(f"cabm: {line}", err=True)
    if failures:
        fail(failures, len(tasks), verbose=messages.verbose)
    if unreadable:
        raise typer.Exit(1)


def _tell(task: Task, report: Report, messages: Messages, named: Callable[[str], str]) -> None:
    if messages.report:
        echo(named(describe(task, report)))
    elif not messages.quiet and report.notes:
        echo(named(f"{task.source}: {'; '.join(report.notes)}"), err=True)


def describe_model(upscaler: Upscaler) -> str:
    """Return the model and how it runs, in one line."""
    why = f" ({upscaler.engine_reason})" if upscaler.engine_reason else ""
    return (
        f"model {upscaler.directory}: {upscaler.model.name} x{upscaler.scale},"
        f" {upscaler.config.precision.kind}; engine {upscaler.engine}{why};"
        f" tiles of {upscaler.tile}, stride {upscaler.stride}"
    )


def describe(task: Task, report: Report) -> str:
    """Return what an image took, as several lines."""
    from cabm.upscaling.trace import seconds_by_bits

    target, seconds = report.target, dict(report.seconds)
    total = seconds.pop("total")
    lines = [f"{task.source} -> {task.output}", f"  size     {target.width} x {target.height} pixels"]
    if target.is_reduced:
        lines[-1] += f", reduced from {target.computed[1]} x {target.computed[0]}"
    tiles = [f"{len(plan)} of {plan.tile_width} x {plan.tile_height}" for plan in report.plans]
    if tiles:
        overlap = f"overlap {report.plan.tile - report.plan.stride} pixels"
        bicubic = f"; {report.bypassed:.0%} bicubic" if report.bypassed else ""
        lines.append(f"  tiles    {', then '.join(tiles)}, {overlap}{bicubic}")
    if report.fab is not None:
        lines.append(f"  FAB      {f'{report.fab:.2f}' if report.fab else 'no tile entered the network'}")
        lines.append(f"  BitOPs   {report.bitops_saved:.1%} saved against the float network")
    if report.bits is not None and report.tile_seconds is not None:
        found = seconds_by_bits(report.bits, report.tile_seconds, report.parts).items()
        times = [f"{bits}: {1000 * each:.0f} ms x {count} tiles" for bits, (count, each) in found]
        lines += [f"  by bits  {', '.join(times)}"] if times else []
    phases = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
    lines.append(f"  seconds  {total:.2f}: {phases}")
    lines.append(f"  engine   {report.engine}")
    lines += [f"  note     {note}" for note in report.notes]
    return "\n".join(lines)


def summary(done: list[Task], found: Survey) -> str:
    """Return what a job did, in one line."""
    parts = []
    if done or not found.kept:
        parts.append(f"wrote {done[0].output}" if len(done) == 1 else f"wrote {len(done)} images")
    if len(found.kept) == 1:
        parts.append(f"kept {found.kept[0].output}, which exists (--overwrite replaces it)")
    elif found.kept:
        parts.append(f"kept {len(found.kept)} that exist (--overwrite replaces them)")
    return "; ".join(parts)


def _local(request: UpscaleRequest) -> tuple[list[Path], Path | None]:
    """Return inputs and output as paths; refuse URLs."""
    for place in (*request.inputs, request.output or ""):
        check_no_url(place)
    output = None if request.output is None else Path(request.output)
    return [Path(place) for place in request.inputs], output


@contextmanager
def _progress(found: Survey, *, show: bool) -> Iterator[tuple]:
    """Show a bar over all tiles that names the current file, on terminals only."""
    from tqdm import tqdm

    total = sum(tiles for _, tiles in found.todo)
    with tqdm(total=total, unit="tile", disable=None if show else True, dynamic_ncols=True) as bar:

        def on_file(number: int, task: Task) -> None:
            bar.n = sum(tiles for _, tiles in found.todo[:number])  # a failed file leaves tiles uncounted
            count = f"{number + 1}/{len(found.todo)} " if len(found.todo) > 1 else ""
            bar.set_description(f"{count}{printable(task.source.name)}")

        yield on_file, bar.update
