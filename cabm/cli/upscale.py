"""`cabm upscale`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cabm.cli.terminal import echo, fail, sigterm_interrupts
from cabm.errors import InputError
from cabm.imaging.formats import DEFAULT_QUALITY, OUTPUT_FORMATS

if TYPE_CHECKING:
    import numpy as np

    from cabm.upscaling.jobs import Survey, Task
    from cabm.upscaling.upscaler import Report, Upscaler


Format = StrEnum("Format", list(OUTPUT_FORMATS))


class EngineOption(StrEnum):
    """What computes."""

    auto = "auto"
    int8 = "int8"
    float = "float"


class DeviceOption(StrEnum):
    """Where it computes."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def upscale(
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images and folders (searched recursively). With --ray: a folder or s3://BUCKET/FOLDER.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder for the results or, for one image, its file. Default: beside each input.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            help="Model directory, or the name of a packaged model. edsr_x4 is the model of the last "
            "`dvc repro` (models/cabm) where none is packaged.",
        ),
    ] = "edsr_x4",
    scale: Annotated[
        int | None, typer.Option(help="Upscaling that the model must have; an error if it has another.")
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option("--format", help="Output format. Default: by the name given with -o, else png."),
    ] = None,
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="Of JPEG and WebP; a WebP of 100 is lossless.")
    ] = DEFAULT_QUALITY,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist; else they are kept.")
    ] = False,
    overlap: Annotated[
        str,
        typer.Option(
            help="Pixels that tiles overlap by. evaluated: as the model was evaluated (2). auto: by what "
            "the network sees, so that a float model's tiles equal the image computed whole; 2 to 3 times "
            "the work."
        ),
    ] = "6",
    tile: Annotated[
        int | None, typer.Option(min=1, help="Side of a tile in input pixels. Default: the table's.")
    ] = None,
    engine: Annotated[
        EngineOption,
        typer.Option(
            help="int8: integer arithmetic. float: the simulated model. auto: int8 where it runs."
        ),
    ] = EngineOption.auto,
    device: Annotated[
        DeviceOption, typer.Option(help="auto: a GPU where there is one.")
    ] = DeviceOption.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: one per core.")] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Print tiles, FAB, BitOPs saved and seconds by phase.")
    ] = False,
    bit_map: Annotated[
        Path | None,
        typer.Option(
            "--bit-map", help="Draw the bits of each tile over the image into this file (one input)."
        ),
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(min=1, help="Lift the limit on the pixels of an input (width x height).")
    ] = None,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Share the images of a folder or bucket among workers, by Ray Data."),
    ] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="With --ray: cluster, HOST:PORT or auto. Default: this machine alone.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --ray: processes, each with a model and --threads (1). Default: all that fit.",
        ),
    ] = None,
    max_failures: Annotated[
        int, typer.Option(min=1, help="With --ray: images that may fail before the job stops.")
    ] = 10_000,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Say which model and engine are used.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.")] = False,
) -> None:
    """Upscale images of any size with a trained model.

    Reads PNG, JPEG, WebP, TIFF and BMP: gray, palette, RGB, with alpha, 8 and 16 bits, CMYK
    (converted). Colour profile, EXIF and resolution are kept. Memory is bounded by the width of the
    image, not by its size. A folder that was interrupted goes on where it was: results that exist
    are kept.

    Examples:

      cabm upscale photo.jpg                        writes photo_x4.png beside it

      cabm upscale scans/ -o out/ --format tiff     a folder, recursively

      cabm upscale a.png -o big.webp --quality 90 --report --bit-map bits.png

      cabm upscale s3://photos/in -o s3://photos/out --ray --ray-address auto
    """
    from cabm.upscaling import jobs as job
    from cabm.upscaling.upscaler import Upscaler

    load = {
        "engine": engine.value,
        "device": device.value,
        "threads": threads,
        "overlap": int(overlap) if overlap.isdecimal() else overlap,
        "tile": tile,
    }
    if not ray:
        _check_is_local(inputs, output, workers)
    # the machines of a cluster choose what runs; here the model and its tiles are checked
    upscaler = Upscaler.load(model, **(load | {"engine": "float", "device": "cpu"} if ray else load))
    if scale not in (None, upscaler.scale):
        raise InputError(
            f"{upscaler.directory} upscales x{upscaler.scale}, not x{scale};"
            " name a model of that scale (--model)"
        )
    if verbose and not ray:
        _say_model(upscaler)
    file_format = None if format is None else format.value
    options = job.Options(quality=quality, overwrite=overwrite, max_pixels=max_pixels)
    if ray:
        from cabm.cli.upscale_at_scale import ClusterOptions, upscale_at_scale

        if bit_map is not None:
            raise InputError(f"--bit-map {bit_map}: draws one image; not with --ray")
        on = ClusterOptions(ray_address, workers, max_failures)
        given = {"file_format": file_format, "load": load, "report": report, "quiet": quiet}
        upscale_at_scale(inputs, output, upscaler, options, on, **given)
        return
    tasks = job.plan_tasks(
        [Path(name) for name in inputs],
        None if output is None else Path(output),
        scale=upscaler.scale,
        file_format=file_format,
    )
    if bit_map is not None:
        _check_bit_map(bit_map, upscaler, len(tasks))
    survey = job.survey(upscaler, tasks, options)

    reports: list[tuple[Task, Report]] = []

    def done(task: Task, result: Report) -> None:
        reports.append((task, result))
        if report:
            echo(describe(task, result))
        elif not quiet and result.notes:
            echo(f"{task.source}: {'; '.join(result.notes)}", err=True)
        if bit_map is not None:
            draw_bit_map(task, result, bit_map)

    try:
        with sigterm_interrupts(), _progress(survey, show=not quiet) as (on_file, on_tiles):
            failures = job.run_job(
                upscaler, survey, options, on_file=on_file, on_tiles=on_tiles, on_done=done
            )
    except KeyboardInterrupt:
        left = len(survey.todo) - len(reports)
        echo(f"cabm: interrupted with {left} to do; the same command goes on where it was", err=True)
        raise typer.Exit(130) from None
    if not quiet and (reports or survey.kept):
        echo(summary(reports, survey))
    if failures:
        fail([failure.reason for failure in failures], len(tasks))


def describe(task: Task, report: Report) -> str:
    """Return a report as lines for people."""
    plan, seconds = report.plan, dict(report.seconds)
    total = seconds.pop("total")
    overlap = f"{plan.tile - plan.stride} pixels overlap"
    lines = [f"{task.source} -> {task.output}"]
    lines.append(f"  tiles    {len(plan)} of {plan.tile_width} x {plan.tile_height}, {overlap}")
    if report.bypassed:
        lines[-1] += f"; {report.bypassed:.0%} bicubic"
    if report.fab is not None:
        fab = f"{report.fab:.2f}" if report.fab else "nothing computed"
        lines.append(f"  FAB      {fab}")
        lines.append(f"  BitOPs   {report.bitops_saved:.1%} saved against the float network")
    phases = ", ".join(f"{phase} {value:.2f}" for phase, value in seconds.items())
    lines.append(f"  seconds  {total:.2f}: {phases}")
    lines.append(f"  engine   {report.engine}")
    lines += [f"  note     {note}" for note in report.notes]
    return "\n".join(lines)


def summary(reports: list[tuple[Task, Report]], survey: Survey) -> str:
    """Return what a job did, in one line for people."""
    if len(reports) == 1:
        parts = [f"wrote {reports[0][0].output}"]
    else:
        parts = [f"wrote {len(reports)} images"]
    if len(survey.kept) == 1:
        parts.append(f"kept {survey.kept[0].output}, which exists (--overwrite replaces it)")
    elif survey.kept:
        parts.append(f"kept {len(survey.kept)} that exist (--overwrite replaces them)")
    return "; ".join(parts if reports or not survey.kept else parts[1:])


def draw_bit_map(task: Task, report: Report, path: Path) -> None:
    """Draw the bits of an image's tiles over it."""
    from cabm.cli.outputs import save_figure
    from cabm.reporting.overlays import bit_map_overlay

    assert report.bits is not None
    fab = report.bits.mean(axis=1)
    figure = bit_map_overlay(_thumbnail(task.source), report.plan, fab, report.parts)
    save_figure(figure, path)


def _thumbnail(path: Path, side: int = 1600) -> np.ndarray:
    """Every n-th pixel of an image, (h,w,3) uint8, about ``side`` pixels at most."""
    import numpy as np

    from cabm.imaging.pixels import network_input
    from cabm.imaging.reader import open_raster

    raster = open_raster(path, max_pixels=1 << 62)  # it was upscaled: its size is allowed
    stride = -(-max(raster.height, raster.width) // side)
    rows = [block[:: stride or 1, ::stride] for block in raster.blocks(stride * max(1, 64 // stride))]
    planes = network_input(np.concatenate(rows)).numpy()
    return planes.transpose(1, 2, 0).astype(np.uint8)


def _check_bit_map(path: Path, upscaler: Upscaler, num_inputs: int) -> None:
    from cabm.cli.outputs import check_figure_name

    if num_inputs != 1:
        raise InputError(f"--bit-map {path}: draws one image, {num_inputs} were given")
    if upscaler.model.precision.kind not in ("cadyq", "cabm"):
        kind = upscaler.model.precision.kind
        raise InputError(f"--bit-map {path}: a {kind} model has no bits that differ from tile to tile")
    check_figure_name(path)


def _check_is_local(inputs: list[str], output: str | None, workers: int | None) -> None:
    urls = [name for name in (*inputs, output or "") if "://" in name]
    if urls:
        raise InputError(f"{urls[0]}: URLs are upscaled by Ray Data; add --ray")
    if workers is not None:
        raise InputError(f"--workers {workers}: goes with --ray; without it, give --threads")


def _say_model(upscaler: Upscaler) -> None:
    why = f" ({upscaler.engine_reason})" if upscaler.engine_reason else ""
    echo(
        f"model {upscaler.directory}: {upscaler.model.name} x{upscaler.scale},"
        f" {upscaler.config.precision.kind}; engine {upscaler.engine}{why};"
        f" tiles of {upscaler.tile}, stride {upscaler.stride}",
        err=True,
    )


@contextmanager
def _progress(survey: Survey, *, show: bool) -> Iterator[tuple]:
    """A bar over all tiles that names the file at work; only on a terminal."""
    from tqdm import tqdm

    total = sum(tiles for _, tiles in survey.todo)
    with tqdm(total=total, unit="tile", disable=None if show else True, dynamic_ncols=True) as bar:

        def on_file(number: int, task: Task) -> None:
            bar.n = sum(tiles for _, tiles in survey.todo[:number])  # failed files leave theirs undone
            count = f"{number + 1}/{len(survey.todo)} " if len(survey.todo) > 1 else ""
            bar.set_description(f"{count}{task.source.name}")

        yield on_file, bar.update
