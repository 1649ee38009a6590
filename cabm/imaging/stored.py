"""Rows that wait in a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from cabm.imaging.metadata import Metadata
from cabm.imaging.raster import Raster


@dataclass(frozen=True)
class StoredRaster(Raster):
    """An image in a temporary file without a header; made by `stored_rows`.

    Attributes:
        file: with all rows, from top to bottom.
    """

    file: IO[bytes]

    def blocks(self, num_rows: int = 64) -> Iterator[np.ndarray]:
        """See `Raster`."""
        row_bytes = self.width * self.channels * self.dtype.itemsize
        for top in range(0, self.height, num_rows):
            rows = min(num_rows, self.height - top)
            data = os.pread(self.file.fileno(), rows * row_bytes, top * row_bytes)
            yield np.frombuffer(data, self.dtype).reshape(rows, self.width, self.channels)


@contextmanager
def stored_rows(rows: Iterable[np.ndarray], path: Path) -> Iterator[StoredRaster]:
    """Write rows to a temporary file for the block.

    The file has no name, so that it vanishes even if the process is killed.

    Args:
        rows: (n, W, C) uint8 or uint16, from top to bottom; at least one block.
        path: a file on the disk and in the folder where the temporary file goes; errors name it.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent) as file:
        height = 0
        for some in rows:
            try:
                file.write(np.ascontiguousarray(some))
                file.flush()
            except OSError as error:
                error.filename = str(path)
                raise
            height += len(some)
            shape, dtype = some.shape, some.dtype
        yield StoredRaster(height, *shape[1:], dtype, Metadata(), (), file)
