"""The models that a page offers, and those that are in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from cabm.checkpoints.find import DEFAULT_MODEL, find_model, packaged_models
from cabm.errors import InputError
from cabm.upscaling.request import UpscaleRequest
from cabm.upscaling.upscaler import Upscaler

_IN_MEMORY = 2


class Models:
    """The models that visitors may choose. They name them; no path comes from a page.

    Args:
        directories: model directories or names of packaged models, offered before the packaged ones.

    Attributes:
        paths: model directories by name, the default first.

    Raises:
        InputError: there is no such model.
    """

    def __init__(self, directories: Sequence[str | Path] = ()) -> None:
        packaged = packaged_models()
        default = {name: path for name, path in packaged.items() if path == find_model(DEFAULT_MODEL)}
        self.paths = {str(name): find_model(name) for name in directories} | default | packaged
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, str], Upscaler] = OrderedDict()

    def path(self, name: str) -> Path:
        """Return the directory of a model.

        Raises:
            InputError: it is not offered.
        """
        if name not in self.paths:
            raise InputError(f"{name}: this page offers {', '.join(self.paths)}")
        return self.paths[name]

    def upscaler(self, name: str, request: UpscaleRequest) -> Upscaler:
        """Return the upscaler for a request; the last few stay in memory.

        Raises:
            InputError: the model cannot be loaded, or not with this engine.
        """
        key = name, request.engine
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = request.load()
            self._loaded.move_to_end(key)
            while len(self._loaded) > _IN_MEMORY:
                self._loaded.popitem(last=False)
            return self._loaded[key]
