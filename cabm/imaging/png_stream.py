"""An uncompressed PNG stream from the thread that computes rows to the thread that encodes them.

libvips pulls pixels, but rows are pushed as they are computed. PNG is the one format with 1 to 4 channels
of 8 or 16 bits that libvips reads from a pipe.
"""

from __future__ import annotations

import queue
import struct
import threading
import zlib

import numpy as np

from cabm.imaging.png_chunks import SIGNATURE, chunk

_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels; PNG, table 11.1
_PIECE_BYTES = 4 << 20
_PIECES = 4  # in the queue, besides the end
_POLL_SECONDS = 0.1


class PngStream:
    """A short queue of PNG data. One thread writes rows, another reads bytes.

    Args:
        height, width: of the image in pixels.
        channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
        bits: per channel, 8 or 16.
    """

    def __init__(self, height: int, width: int, channels: int, bits: int) -> None:
        self._height, self._row_shape = height, (width, channels)
        self._dtype = np.dtype(">u2" if bits == 16 else np.uint8)
        self._queue: queue.Queue[bytes | None] = queue.Queue()
        self._room = threading.Semaphore(_PIECES)
        self._rest = memoryview(b"")
        self._closed = False
        self._ended = False
        self._aborted = False
        self._failure: str | None = None  # the exception itself would keep frames, and so the rows, alive
        self._reader_done = threading.Event()
        self._compressor = zlib.compressobj(0)
        self._num_rows = 0
        header = struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPE[channels], 0, 0, 0)
        self._put(SIGNATURE + chunk(b"IHDR", header))

    def write(self, rows: np.ndarray) -> None:
        """Append (n, width, channels) rows; waits while the reader is behind."""
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        row_bytes = self._row_shape[0] * self._row_shape[1] * self._dtype.itemsize
        piece = max(1, _PIECE_BYTES // row_bytes)
        for top in range(0, len(rows), piece):
            part = np.ascontiguousarray(rows[top : top + piece], self._dtype)
            scanlines = np.zeros((len(part), 1 + row_bytes), np.uint8)  # the first byte is the filter: none
            scanlines[:, 1:] = part.reshape(len(part), -1).view(np.uint8)
            self._put(chunk(b"IDAT", self._compressor.compress(scanlines)))
        self._num_rows += len(rows)

    def close(self) -> None:
        """End the stream after the last row, without waiting; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        assert self._num_rows == self._height, f"{self._num_rows} of {self._height} rows were written"
        self._queue.put(chunk(b"IDAT", self._compressor.flush()) + chunk(b"IEND", b""))
        self._queue.put(None)

    def abort(self) -> None:
        """End the stream early, so that the reader fails."""
        self._aborted = self._failure is None

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end of the stream; waits for the writer."""
        while not self._rest and not self._ended and not self._aborted:
            try:
                piece = self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                continue
            self._room.release()
            self._ended = piece is None
            self._rest = memoryview(piece or b"")
        taken, self._rest = self._rest[:size], self._rest[size:]
        return bytes(taken)

    def end_reading(self, failure: str | None) -> None:
        """Tell the writer that the reader is done, and why it failed."""
        self._failure = failure
        self._reader_done.set()

    def wait_for_reader(self) -> None:
        """Wait until the reader is done."""
        self._reader_done.wait()

    @property
    def reader_is_done(self) -> bool:
        """Whether the reader has read all, or failed."""
        return self._reader_done.is_set()

    @property
    def failure(self) -> str | None:
        """Why the reader failed; None if it did not, or because of `abort`."""
        return None if self._aborted else self._failure

    def _put(self, piece: bytes) -> None:
        while not self._reader_done.is_set():
            if self._room.acquire(timeout=_POLL_SECONDS):
                self._queue.put(piece)
                return
        if self._failure is not None:
            raise RuntimeError(self._failure)
