"""The file of an edge-to-bit table: ``edge_to_bit.json``, format ``cabm.edge_to_bit/1``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cabm.errors import InputError
from cabm.files import atomic_write, read_json

TABLE_FORMAT = "cabm.edge_to_bit/1"

Table = TypeVar("Table")

LATER_FIELDS = {"contrast_limit"}
"""Fields that older files lack; files without a value leave them out."""


def read_document(path: str | Path, table: type[Table]) -> Table:
    """Read a table from its file.

    Args:
        path: the file.
        table: the dataclass whose fields the file must have, except `LATER_FIELDS`.

    Raises:
        InputError: there is no such file, it is not JSON or has another format, or a field is missing,
            unknown or wrong.
    """
    document = read_json(path)
    found = document.pop("format", None) if isinstance(document, dict) else None
    if found != TABLE_FORMAT:
        raise InputError(f"{path}: format {found!r} is not an edge-to-bit table ({TABLE_FORMAT!r})")
    adapter = TypeAdapter(table)
    try:
        # as JSON, lists are tuples and objects are dataclasses to a strict check
        loaded = adapter.validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            problem = str(first["ctx"]["error"])  # our own message, which names the field
        else:
            problem = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise InputError(f"{path}: {problem}; rebuild the table") from None
    missing = adapter.dump_python(loaded, by_alias=True).keys() - document.keys() - LATER_FIELDS
    if missing:
        raise InputError(f"{path}: {min(missing)}: Field required; rebuild the table")
    return loaded


def write_document(path: str | Path, fields: dict[str, Any]) -> None:
    """Write the fields of a table as JSON, atomically; one row of bits per line, for readable diffs."""
    document = {"format": TABLE_FORMAT, **fields}
    rows = ",\n".join(f"    {json.dumps(row)}" for row in document.pop("rows"))
    lines = [
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in document.items()
    ]
    lines.append(f'  "rows": [\n{rows}\n  ]')
    with atomic_write(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
