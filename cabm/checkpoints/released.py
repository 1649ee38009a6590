"""Import published checkpoints: EDSR-PyTorch, CARN-pytorch, IDN-pytorch, PAMS, CADyQ and CABM."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabm.checkpoints import released_keys as published
from cabm.errors import InputError
from cabm.models.base import RGB_MEAN, Backbone
from cabm.models.registry import BACKBONES, build_model
from cabm.quant import KINDS, Kind, Precision

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.")
MAX_LISTED = 20


def read_released_file(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.pt``, ``.pth`` or ``.pth.tar`` file without running any code from it.

    Args:
        path: a state dict, or a checkpoint with one under ``state_dict``. The ``module.`` prefixes of
            data-parallel training are removed.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        InputError: no such file; a damaged file; no checkpoint; or objects other than tensors and plain
            containers, which would run code when loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; errors are reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load has no common error for bad files: RuntimeError, EOFError, UnpicklingError, KeyError
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise InputError(
                f"{path}: contains objects that would run code when loaded; if you trust the file, save "
                "its state_dict alone and import that"
            ) from None
        raise InputError(f"{path}: damaged, or not a PyTorch checkpoint") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path}: a checkpoint without a state_dict; save the state_dict and import that")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise InputError(f"{path}: not a state_dict, not all entries are tensors: {_listed(others)}")
    state = {str(name): value for name, value in content.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def import_released(
    backbone: str,
    kind: Kind,
    state_dict: Mapping[str, Tensor],
    scale: int,
    *,
    search_space: Sequence[int] = (4, 6, 8),
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """Build a backbone from the tensors of a published checkpoint; it computes the same function.

    Width and depth are read from the tensor shapes.

    Args:
        backbone: edsr, srresnet, idn or carn.
        kind: float, pams, cadyq or cabm. For cabm, selectors in the checkpoint are ignored.
        state_dict: tensors by the names in the release.
        scale: 2, 3 or 4. The tensor shapes do not always determine it.
        search_space: the bit-widths of the release's quant_bit1, quant_bit2 and so on.
        options: constructor arguments that tensor shapes do not determine, such as EDSR's ``res_scale``.

    Returns:
        The model, in evaluation mode.

    Raises:
        InputError: an unknown backbone or kind; missing or unknown keys, all listed; tensors of the wrong
            shape or with values that are not finite; or another mean colour.
    """
    if (backbone, kind) not in published.KEY_MAPS:
        known = backbone in BACKBONES and kind not in KINDS
        what, names = ("kind", KINDS) if known else ("backbone", sorted({b for b, _ in published.KEY_MAPS}))
        raise InputError(
            f"no published checkpoints of {what} {kind if known else backbone!r}; known: {names}"
        )
    _check_mean_shift(backbone, state_dict)
    widths = {int(match[1]) for key in state_dict if (match := re.search(r"\.quant_bit(\d+)\.", key))}
    if widths and len(widths) != len(search_space):
        raise InputError(
            f"the checkpoint has {len(widths)} widths per position, the search space {list(search_space)} "
            f"has {len(search_space)}; give the search space it was trained with"
        )
    arguments = _read_options(backbone, kind, state_dict) | dict(options or {})
    model = build_model(backbone, scale, Precision(kind, tuple(search_space)), arguments)
    blocks = arguments.get("num_blocks", 0)
    attempts = [
        _Translation(key_map, model, state_dict, blocks) for key_map in published.KEY_MAPS[backbone, kind]
    ]
    best = min(attempts, key=lambda attempt: len(attempt.problems()))
    if best.problems():
        raise InputError(
            f"not a {kind} {backbone} x{scale} checkpoint: {'; '.join(best.problems())}"
            f"{_kind_hint(kind, state_dict)}"
        )
    model.load_state_dict(best.loaded)
    return model.eval()


class _Translation:
    """A checkpoint read by one key map: our state dict, and everything that does not fit."""

    def __init__(
        self, key_map: published.KeyMap, model: Backbone, state: Mapping[str, Tensor], blocks: int
    ) -> None:
        self.state = state
        self.constants = {"end": blocks, "scale": model.scale}
        self.num_widths = len(model.precision.search_space)
        self.loaded: dict[str, Tensor] = {}
        self.missing: list[str] = []
        self.wrong: list[str] = []
        used: set[str] = set()
        for name, fresh in model.state_dict().items():
            names = list(self._released_names(key_map, name))
            found = [key for key in names if key in state]
            used.update(found)
            if ".quant_bit" in names[0] and len(found) < len(names):  # a tensor per width
                self.missing += [key for key in names if key not in state]
            elif found:
                self._load(name, fresh, found)
            elif name.endswith("num_batches_tracked"):  # checkpoints from before PyTorch 0.4.1
                self.loaded[name] = fresh
            else:
                self.missing.append(names[0])
        used |= self._absorb_biases()
        ignored = _ignored(model)
        self.unknown = [key for key in state if key not in used and not ignored.fullmatch(key)]

    def problems(self) -> list[str]:
        """Return everything that does not fit, empty if the checkpoint can be loaded."""
        found = []
        if self.missing:
            found.append(f"missing keys {_listed(self.missing)}")
        if self.unknown:
            found.append(f"unknown keys {_listed(self.unknown)}")
        return found + self.wrong

    def _released_names(self, key_map: published.KeyMap, name: str) -> Iterator[str]:
        """Yield the names that one of our tensors may have in the release, in the order of the widths."""
        for ours, theirs in key_map.items():
            match = _pattern(ours).fullmatch(name)
            if match is None:
                continue
            for template in (theirs,) if isinstance(theirs, str) else theirs:
                key = _fill(template, match.groupdict() | self.constants)
                # a remaining {i}: one tensor registered once per block; {k}: a tensor per width
                count = self.constants["end"] if "{i}" in key else self.num_widths
                for number in range(count):
                    yield key.replace("{i}", str(number)).replace("{k}", str(number + 1))
                    if "{" not in key:
                        break

    def _load(self, name: str, fresh: Tensor, keys: list[str]) -> None:
        tensors = [self.state[key].detach() for key in keys]
        if ".quant_bit" in keys[0]:
            value = torch.cat([tensor.reshape(-1) for tensor in tensors])
        else:
            value = tensors[0]
            differing = [key for key, tensor in zip(keys, tensors, strict=True) if not _same(tensor, value)]
            if differing:
                self.wrong.append(f"{keys[0]} and {_listed(differing)} should be one tensor but differ")
        if value.shape != fresh.shape:
            self.wrong.append(f"{keys[0]} is {tuple(value.shape)}, expected {tuple(fresh.shape)}")
        elif not bool(torch.isfinite(value).all()):
            self.wrong.append(f"{keys[0]} has values that are not finite")
        self.loaded[name] = value.to(fresh.dtype)

    def _absorb_biases(self) -> set[str]:
        """Move convolution biases into the batch norm behind them; return their names."""
        absorbed = set()
        for ours, theirs in published.ABSORBED.items():
            for name in list(self.loaded):
                match = _pattern(ours).fullmatch(name)
                key = _fill(theirs, match.groupdict() | self.constants) if match else None
                if key in self.state and self.state[key].shape == self.loaded[name].shape:
                    self.loaded[name] = self.loaded[name] - self.state[key]
                    absorbed.add(key)
        return absorbed


def _pattern(template: str) -> re.Pattern[str]:
    pattern = re.escape(template).replace(r"\{p\}", r"(?P<p>[a-z_]+)")
    return re.compile(re.sub(r"\\\{([ija])\\\}", r"(?P<\1>\\d+)", pattern))


def _fill(template: str, values: Mapping[str, Any]) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[1] not in values:
            return match[0]
        return str(int(values[match[1]]) + 1) if match[2] else str(values[match[1]])

    return re.sub(r"\{(\w+)(\+1)?\}", replace, template)


def _read_options(backbone: str, kind: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for option, (key, axes) in published.SIZES[backbone].items():
        if key not in state:
            raise InputError(
                f"not a {kind} {backbone} checkpoint: missing keys {key}, needed for {option}"
                f"{_kind_hint(kind, state)}"
            )
        shape = state[key].shape
        if len(shape) <= max(axes):
            raise InputError(f"not a {kind} {backbone} checkpoint: {key} has shape {tuple(shape)}")
        options[option] = sum(sign * shape[axis] for axis, sign in axes.items())
    if backbone in published.NUM_BLOCKS:
        pattern = re.compile(published.NUM_BLOCKS[backbone])
        numbers = [int(match[1]) for key in state if (match := pattern.fullmatch(key))]
        options["num_blocks"] = max(numbers, default=-1) + 1
    if backbone == "srresnet" and kind != "float":
        options["release_graph"] = True
    return options


def _check_mean_shift(backbone: str, state: Mapping[str, Tensor]) -> None:
    if backbone not in published.MEAN_SHIFTS:
        return
    template, pixel_range = published.MEAN_SHIFTS[backbone]
    for sign, name in ((-1, "sub"), (1, "add")):
        base = template.format(sign=name)
        expected = {
            f"{base}.weight": torch.eye(3).view(3, 3, 1, 1),
            f"{base}.bias": sign * pixel_range * torch.tensor(RGB_MEAN),
        }
        for key, value in expected.items():
            found = state.get(key)
            if found is not None and not _same(found.float(), value, 1e-4 * pixel_range):
                raise InputError(
                    f"{key} is {found.flatten().tolist()}, expected {value.flatten().tolist()}: the "
                    f"checkpoint was trained with another mean or range of pixels than 0..{pixel_range:g}"
                )


def _ignored(model: Backbone) -> re.Pattern[str]:
    patterns = [
        pattern
        for (backbone, kind), pattern in published.IGNORED.items()
        if backbone in (None, model.name) and kind in (None, model.precision.kind)
    ]
    if model.name in published.MEAN_SHIFTS:
        template = re.escape(published.MEAN_SHIFTS[model.name][0]).replace(r"\{sign\}", "(sub|add)")
        patterns.append(rf"{template}\.(weight|bias)")
    return re.compile("|".join(f"({pattern})" for pattern in patterns).replace("{scale}", str(model.scale)))


def _kind_hint(kind: str, state: Mapping[str, Tensor]) -> str:
    if any(".net_small." in key or ".quant_bit" in key for key in state):
        likely = ("cadyq", "cabm")
    elif any(key.endswith(".alpha") for key in state):
        likely = ("pams",)
    else:
        likely = ("float",)
    return "" if kind in likely else f"; its keys look like those of kind {' or '.join(likely)}"


def _same(a: Tensor, b: Tensor, tolerance: float = 0.0) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
