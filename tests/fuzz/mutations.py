"""Damaged files: valid ones with a few changes to their bytes or their content."""

from __future__ import annotations

import copy
import json
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.fuzz.targets import Target, join_safetensors, split_safetensors

# limits of signs, 32 and 64 bits, floats and shapes
_NUMBERS = (-1, 0, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30)
_FLOATS = (-0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "",
    " ",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "a\nb",
    "\x00",
    "\x1b[2J",
    "é",
    "\U0001f600",
)
_LONE_SURROGATE = "\ud800"


def values(*, surrogates: bool) -> st.SearchStrategy[Any]:
    """Return values that replace another in a document."""
    texts = (*_TEXTS, _LONE_SURROGATE, "x" * 5000) if surrogates else (*_TEXTS, "x" * 5000)
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(_NUMBERS),
        st.sampled_from(_FLOATS),
        st.sampled_from(texts),
        st.integers(-300, 300),
        st.floats(),
        st.text(max_size=20),
    )
    return st.one_of(
        plain,
        st.lists(plain, max_size=4),
        st.dictionaries(st.text(max_size=8), plain, max_size=3),
        st.just([[[[]]]]),
    )


@st.composite
def documents(draw: st.DrawFn, seed: Any, *, surrogates: bool = True) -> Any:
    """Draw a document with one to three places changed, dropped, doubled or extended."""
    root = [copy.deepcopy(seed)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        container, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(("replace", "replace", "near", "drop", "add", "double"))):
            case "replace":
                container[key] = draw(values(surrogates=surrogates))
            case "near" if isinstance(container[key], (int, float)):
                container[key] = container[key] + draw(st.sampled_from((-1, 1, 0.5, 1e9)))
            case "drop" if container is not root:
                del container[key]
            case "add" if isinstance(container[key], dict):
                container[key][draw(st.text(max_size=8))] = draw(values(surrogates=surrogates))
            case "double" if isinstance(container[key], list):
                container[key] = container[key] * 2
            case _:
                pass
    return root[0]


def _places(container: Any) -> Any:
    entries = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in list(entries):
        yield container, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Draw bytes with one to four changes: flipped bits, cuts, insertions, runs of a byte or numbers."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not changed:
            break
        # readers decide by headers
        last = len(changed) - 1
        at = draw(st.one_of(st.integers(0, min(200, last)), st.integers(0, last)))
        match draw(st.sampled_from(("flip", "flip", "byte", "cut", "drop", "insert", "fill", "number"))):
            case "flip":
                changed[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                changed[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x2D, 0x30)))
            case "cut":
                del changed[at:]
            case "drop":
                del changed[at : at + draw(st.integers(1, 64))]
            case "insert":
                changed[at:at] = draw(st.binary(min_size=1, max_size=16))
            case "fill":
                width = draw(st.integers(1, 32))
                changed[at : at + width] = bytes([draw(st.integers(0, 255))]) * width
            case _:
                width = draw(st.sampled_from((2, 4, 8)))
                number = draw(st.sampled_from((0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63)))
                order = draw(st.sampled_from(("little", "big")))
                changed[at : at + width] = (number % 256**width).to_bytes(width, order)
    return bytes(changed)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return files for a target: three in four are damaged versions of a valid file, others are random."""
    near = [damaged(seed) for seed in target.seeds]
    for seed in target.seeds:
        match target.kind:
            case "json":
                near.append(documents(json.loads(seed)).map(_json))
            case "yaml":
                changed = documents(yaml.safe_load(seed), surrogates=False)
                near.append(changed.map(_yaml))
            case "safetensors":
                header, body = split_safetensors(seed)
                changed = documents(json.loads(header)).map(_json)
                near.append(changed.map(lambda text, body=body: join_safetensors(text, body)))
    return st.one_of(*near, *near, *near, st.binary(max_size=200))


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _yaml(value: Any) -> bytes:
    return yaml.dump(value, Dumper=yaml.CSafeDumper, allow_unicode=True).encode()
