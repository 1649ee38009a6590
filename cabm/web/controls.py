"""Controls of the page that Gradio does not have as they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_SIZES = [
    ("The model's scale", "scale"),
    ("Factor", "factor"),
    ("Longer side, at most", "max_side"),
    ("Width", "width"),
    ("Height", "height"),
    ("Width and height", "both"),
]
_LABELS = {"factor": "Factor, such as 2.5", "both": "Width, pixels", "scale": ""}


def upload(**options: Any) -> gr.File:
    """Return a component for one file that a visitor uploads.

    Unlike Gradio's own, it downloads nothing when it is sent a URL instead. (No subclass: Gradio writes a
    file beside the module of each subclass.)
    """
    component = gr.File(**options)
    keep = component.async_move_resource_to_block_cache

    async def only_files(path: str | Path | None) -> str | None:
        if path is not None and not Path(path).is_file():
            raise gr.Error("upload a file")
        return await keep(path)

    component.async_move_resource_to_block_cache = only_files
    return component


def size_controls() -> list[Any]:
    """Add the controls for the size of the result; return them as `output_size` takes them."""
    kind = gr.Dropdown(_SIZES, value="scale", label="Output size", filterable=False)
    with gr.Row(visible=False) as numbers:
        first = gr.Number(label="Pixels", min_width=110)
        second = gr.Number(label="Height, pixels", min_width=110, visible=False)
    twice = gr.Checkbox(label="Run the model twice for larger sizes")

    def on_kind(chosen: str) -> tuple[Any, ...]:
        return (
            gr.update(visible=chosen != "scale"),
            gr.update(label=_LABELS.get(chosen, "Pixels"), value=None),
            gr.update(visible=chosen == "both", value=None),
        )

    kind.change(on_kind, kind, [numbers, first, second], show_progress="hidden", api_visibility="private")
    return [kind, first, second, twice]
