"""The parts of the page that say something: progress, results, errors."""

from __future__ import annotations

from html import escape
from urllib.parse import quote

from cabm.upscaling.upscaler import Report
from cabm.web.jobs import Phase, Progress, Upscaled
from cabm.web.pictures import Pictures

_PHASE_COLORS = {
    "decode": "#93c2e3",
    "score": "#6d9fd2",
    "look up": "#7a72b8",
    "network": "#6b1353",
    "merge": "#c96a1f",
    "encode": "#d9a441",
}
_OTHER_COLOR = "#8c8c8c"


def idle() -> str:
    """Return the panel before anything was upscaled."""
    return (
        '<div class="note idle"><p>Drop a photograph anywhere, paste one (Ctrl+V) or choose a file,<br>'
        "then press <b>Upscale</b>. It is processed on the machine that serves this page.</p></div>"
    )


def loaded(name: str, height: int, width: int, size: int) -> str:
    """Return what an image is, before it is upscaled."""
    return (
        f'<div class="note"><b>{escape(name)}</b>: {width} × {height} pixels'
        f" ({height * width / 1e6:.1f} MP, {megabytes(size)})</div>"
    )


def progress_bar(progress: Progress) -> str:
    """Return how far a job is: tiles, share and time left."""
    share = progress.done / progress.total if progress.total else 0.0
    tiles = f"{progress.done:,} of {progress.total:,} tiles" if progress.total else ""
    left = "" if progress.seconds_left is None else f"about {duration(progress.seconds_left)} left"
    if progress.phase is Phase.UPSCALING and not left:
        left = "measuring the time left"
    return (
        f'<div class="progress" role="progressbar" aria-valuenow="{share * 100:.0f}" aria-valuemin="0"'
        f' aria-valuemax="100"><div class="line"><b>{progress.phase.value}</b><span>{tiles}</span>'
        f'<span class="left">{left}</span></div>'
        f'<div class="bar"><i style="width:{share * 100:.1f}%"></i></div></div>'
    )


def failed(line: str) -> str:
    """Return an error."""
    return f'<div class="note error" role="alert">{escape(line)}</div>'


def cancelled(progress: Progress) -> str:
    """Return that a job was cancelled."""
    tiles = f" after {progress.done:,} of {progress.total:,} tiles" if progress.total else ""
    return f'<div class="note">Cancelled{tiles}. Nothing was kept.</div>'


def results(upscaled: Upscaled, pictures: Pictures, url: str) -> str:
    """Return the download, what the image took, and notes.

    Args:
        upscaled: the image.
        pictures: what is shown of it.
        url: where the page finds files, such as ``gradio_api/file=``.
    """
    report, output = upscaled.report, upscaled.task.output
    height, width = pictures.size
    link = f"{url}{quote(str(output))}"
    facts = "".join(f"<div><b>{value}</b><span>{title}</span></div>" for title, value in facts_of(report))
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    return (
        '<div class="results"><div class="download">'
        f'<a class="button" href="{escape(link)}" download="{escape(output.name)}">Download</a>'
        f"<span><b>{escape(output.name)}</b><br>{width} × {height} pixels,"
        f" {megabytes(output.stat().st_size)}</span></div>"
        f'<div class="facts">{facts}</div>{phases(report)}{f"<ul>{notes}</ul>" if notes else ""}</div>'
    )


def facts_of(report: Report) -> list[tuple[str, str]]:
    """Return what an image took: titles and values."""
    facts = []
    if report.fab is not None:
        facts.append(("FAB, mean bits", f"{report.fab:.2f}" if report.fab else "–"))
        facts.append(("BitOPs saved", f"{report.bitops_saved:.1%}"))
    if report.parts is not None:
        facts.append(("bypassed", f"{report.bypassed:.0%}"))
    facts.append(("tiles", f"{sum(map(len, report.plans)):,}"))
    facts.append(("engine", report.engine.replace(" on ", ", ")))
    facts.append(("in all", duration(report.seconds["total"])))
    return facts


def phases(report: Report) -> str:
    """Return the seconds by phase as a bar and its legend."""
    names = sorted(report.seconds.keys() - {"total"}, key=_order)
    seconds = {name: report.seconds[name] for name in names}
    whole = sum(seconds.values()) or 1.0
    bar, legend = "", ""
    for name, value in seconds.items():
        color = _PHASE_COLORS.get(name, _OTHER_COLOR)
        bar += f'<i style="width:{100 * value / whole:.2f}%;background:{color}"></i>'
        legend += f'<span><i style="background:{color}"></i>{escape(name)} {value:.2f} s</span>'
    return f'<div class="phases"><div class="bar">{bar}</div><div class="legend">{legend}</div></div>'


def _order(phase: str) -> tuple[int, str]:
    known = list(_PHASE_COLORS)
    return (known.index(phase) if phase in known else len(known)), phase


def shown_as(pictures: Pictures, *, detail: bool = False) -> str:
    """Return how the pictures relate to the result."""
    height, width = pictures.size
    if detail:
        text = f"A detail of {width} × {height} pixels around the chosen tile, every pixel of the result."
    elif pictures.whole:
        text = "Every pixel of the result. Scroll or pinch to zoom, drag the line to compare."
    else:
        text = (
            f"Shown at {pictures.shown[1]} × {pictures.shown[0]} to spare the browser; the download has"
            f" {width} × {height}. Click a tile of the bit map to see every pixel there."
        )
    return f'<div class="note quiet">{text} Left: bicubic, right: upscaled.</div>'


def duration(seconds: float) -> str:
    """Return a time as people say it: ``0.8 s``, ``12 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def megabytes(size: int) -> str:
    """Return the size of a file: ``310 kB``, ``4.2 MB``."""
    return f"{size / 1000:.0f} kB" if size < 1_000_000 else f"{size / 1e6:.1f} MB"
