"""`cabm preset`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from cabm.errors import InputError
from cabm.files import atomic_write


def preset_names() -> list[str]:
    """Return the names of the packaged presets."""
    return sorted(Path(str(entry)).stem for entry in (files("cabm.project") / "presets").iterdir())


def preset(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Preset to write. Default: list the presets.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File to write.")] = Path(
        "params.yaml"
    ),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the presets.")] = False,
) -> None:
    """Write params.yaml with the settings of a known experiment.

    Examples:

      cabm preset --list

      cabm preset paper --force && dvc repro
    """
    entries = {found: files("cabm.project") / "presets" / f"{found}.yaml" for found in preset_names()}
    if show or name is None:
        for found, entry in entries.items():
            first = entry.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
            typer.echo(f"{found:10} {first}")
        return
    if name not in entries:
        raise InputError(f"{name}: no such preset; the presets are {', '.join(entries)}")
    if output.exists() and not force:
        raise InputError(f"{output}: exists already; replace it with --force, or name another file with -o")
    with atomic_write(output) as temporary:
        temporary.write_bytes(entries[name].read_bytes())
    typer.echo(f"wrote {output}")
