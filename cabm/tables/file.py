"""The file of an edge-to-bit table: ``edge_to_bit.json``, format ``cabm.edge_to_bit/1``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from cabm.errors import InputError
from cabm.files import atomic_write, read_json

TABLE_FORMAT = "cabm.edge_to_bit/1"


class _Document(BaseModel):
    """Types of the file; what its values must satisfy together is the table's own matter."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    format: Literal["cabm.edge_to_bit/1"]
    backbone: str = Field(min_length=1)
    scale: int = Field(ge=1, le=64)
    search_space: list[int]
    layers: list[str] = Field(min_length=1)
    tile: int = Field(ge=1, alias="patch")
    stride: int = Field(ge=1, alias="step")
    operator: str
    strategy: str
    fab_cap: float | None
    source_sha256: str | None
    bypass: dict[str, JsonValue] | None
    thresholds: list[float]
    rows: list[list[Annotated[int, Field(ge=0, le=32)]]]


def read_table(path: str | Path) -> dict[str, Any]:
    """Read the fields of a table file and check their types.

    Raises:
        InputError: no such file, not JSON, another format, a field that is missing, unknown or of a
            wrong type; one line that names the file and the place in it.
    """
    document = read_json(path)
    found = document.get("format") if isinstance(document, dict) else None
    if found != TABLE_FORMAT:
        raise InputError(f"{path}: format {found!r} is not an edge-to-bit table ({TABLE_FORMAT!r})")
    try:
        return _Document.model_validate(document, strict=True).model_dump(exclude={"format"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {place}: {first['msg']}; rebuild the table") from None


def write_table(path: str | Path, fields: dict[str, Any]) -> None:
    """Write the fields as JSON, one row of bits a line so that differences read well, atomically."""
    document = {"format": TABLE_FORMAT, **fields}
    rows = ",\n".join(f"    {json.dumps(row)}" for row in document.pop("rows"))
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in document.items()
    ]
    lines.append(f'  "rows": [\n{rows}\n  ]')
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
