"""The options that `cabm upscale` and `cabm cluster upscale` share, one type for each."""

from __future__ import annotations

import re
from dataclasses import fields
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cabm.errors import InputError
from cabm.imaging.formats import OUTPUT_FORMATS

if TYPE_CHECKING:
    from cabm.upscaling.request import UpscaleRequest
    from cabm.upscaling.size import OutputSize

SIZE = "Size of the result (default: as the model makes it)"
TILES = "Tiles and computation"
MESSAGES = "Messages"

FormatName = StrEnum("FormatName", list(OUTPUT_FORMATS))
EngineName = StrEnum("EngineName", ["auto", "int8", "float"])
AlphaName = StrEnum("AlphaName", ["network", "bicubic"])
DeviceName = StrEnum("DeviceName", ["auto", "cpu", "cuda"])

Model = Annotated[
    str,
    typer.Option(
        "-m", "--model", metavar="MODEL", help="Model directory, or the name of a packaged model."
    ),
]
Scale = Annotated[
    int | None,
    typer.Option(metavar="N", help="Stop if the model has another scale factor."),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size", metavar="WxH", help="Exact size in pixels, such as 3840x2160.", rich_help_panel=SIZE
    ),
]
Width = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Width; the height follows.", rich_help_panel=SIZE),
]
Height = Annotated[
    int | None,
    typer.Option(min=1, metavar="PIXELS", help="Height; the width follows.", rich_help_panel=SIZE),
]
Factor = Annotated[
    float | None,
    typer.Option(metavar="F", help="Factor for both sides, such as 2.5.", rich_help_panel=SIZE),
]
MaxSide = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Limit on the longer side: as large as the model makes it, or this.",
        rich_help_panel=SIZE,
    ),
]
Passes = Annotated[
    int,
    typer.Option(
        min=1,
        max=2,
        metavar="N",
        help="2: run the model a second time, on its own result, where the size needs that.",
        rich_help_panel=SIZE,
    ),
]
Format = Annotated[
    FormatName | None,
    typer.Option("--format", help="Output format. Default: by the file name given with -o, else png."),
]
Quality = Annotated[
    int,
    typer.Option(
        min=1, max=100, metavar="N", help="JPEG, WebP or AVIF quality (100 = lossless, except JPEG)."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing results instead of keeping them.")
]
MaxPixels = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Accept inputs of up to N pixels (width x height)."),
]
ToSrgb = Annotated[bool, typer.Option("--to-srgb", help="Convert colours to sRGB by the embedded profile.")]
Strip = Annotated[
    bool,
    typer.Option(
        "--strip", help="Write no metadata, except a mark that the image is a result; colours become sRGB."
    ),
]
Damaged = Annotated[bool, typer.Option("--damaged", help="Upscale what is left of images that lost data.")]

AllFrames = Annotated[
    bool,
    typer.Option(
        "--all-frames",
        help="Upscale all pages of a TIFF, into a TIFF, and all frames of a GIF, PNG or WebP animation,"
        " into a WebP, PNG or TIFF. Default: the first.",
    ),
]

Alpha = Annotated[
    AlphaName,
    typer.Option(
        help="What upscales transparency. network: sharper edges. bicubic: faster.",
        rich_help_panel=TILES,
    ),
]


def _print_formats(wanted: bool) -> None:
    if wanted:
        from cabm.imaging.formats import describe_formats

        typer.echo(describe_formats())
        raise typer.Exit


Formats = Annotated[
    bool,
    typer.Option(
        "--formats",
        is_eager=True,
        callback=_print_formats,
        help="List the formats that are read and written here, and exit.",
        rich_help_panel=MESSAGES,
    ),
]
Overlap = Annotated[
    str,
    typer.Option(
        metavar="PIXELS",
        help="Overlap of neighbouring tiles in input pixels. evaluated: as in the model's evaluation"
        " (2 pixels). auto: as much as the network sees, so that a float model gives the same image as"
        " without tiles, at 2 to 3 times the work.",
        rich_help_panel=TILES,
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="PIXELS",
        help="Side of a tile in input pixels. Default: as in the model's table.",
        rich_help_panel=TILES,
    ),
]
Engine = Annotated[
    EngineName,
    typer.Option(
        help="int8: integer arithmetic. float: floating-point simulation. auto: int8 if the machine and the"
        " model allow it.",
        rich_help_panel=TILES,
    ),
]
Device = Annotated[DeviceName, typer.Option(help="auto: a GPU if there is one.", rich_help_panel=TILES)]
Report = Annotated[
    bool, typer.Option("--report", help="Print what the job took.", rich_help_panel=MESSAGES)
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print errors only.", rich_help_panel=MESSAGES)]


def upscale_request(context: typer.Context, inputs: tuple[str, ...], output: str | None) -> UpscaleRequest:
    """Return the request that a command's options describe: its fields have the names of the options."""
    from cabm.upscaling.request import UpscaleRequest

    names = {field.name for field in fields(UpscaleRequest)} & context.params.keys()
    given = {name: context.params[name] for name in names - {"inputs", "output", "size"}}
    # plain texts: workers of a cluster unpickle the request
    given |= {name: value.value for name, value in given.items() if isinstance(value, StrEnum)}
    if given["overlap"].isdecimal():
        given["overlap"] = int(given["overlap"])
    return UpscaleRequest(inputs, output, size=_output_size(context.params), **given)


def _output_size(params: dict[str, Any]) -> OutputSize:
    """Return the size that a command's options describe.

    Raises:
        InputError: they contradict each other, or ``--size`` is not a width and a height.
    """
    from cabm.upscaling.size import OutputSize

    given = {name: params[name] for name in ("width", "height", "factor", "max_side", "passes")}
    if params["size"] is not None:
        match = re.fullmatch(r"(\d+)[xX×](\d+)", params["size"].strip())
        if match is None:
            raise InputError(f"--size {params['size']}: give width and height, such as --size 3840x2160")
        if given["width"] is not None or given["height"] is not None:
            raise InputError("--size gives width and height; leave out --width and --height")
        given |= {"width": int(match[1]), "height": int(match[2])}
    return OutputSize(**given)
