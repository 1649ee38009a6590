"""Feed rows that are computed one after another to libvips, which pulls pixels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from cabm.imaging.png_stream import PngStream
from cabm.imaging.reduce import reduced


class RowsNotTaken(RuntimeError):
    """The receiver of the rows failed; the message is its reason."""


@dataclass(frozen=True)
class RowShape:
    """Rows that are fed: height and width of the image, 1 to 4 channels, 8 or 16 bits per channel."""

    height: int
    width: int
    channels: int
    bits: int


@contextmanager
def row_stream(shape: RowShape, receive: Callable[[Any], object]) -> Iterator[PngStream]:
    """Yield a stream that takes rows, from top to bottom.

    Args:
        shape: of the rows.
        receive: called in a thread of its own with a sequential libvips image of the rows.

    Raises:
        RowsNotTaken: ``receive`` failed.
    """
    stream = PngStream(shape.height, shape.width, shape.channels, shape.bits)
    receiver = threading.Thread(target=_receive, args=(stream, receive), name="encode", daemon=True)
    try:
        receiver.start()
        yield stream
        stream.close()
        stream.wait_for_reader()  # an interrupted join() would take the thread for finished
    except BaseException as error:
        stream.abort()
        if stream.failure is not None:
            error.__traceback__ = None  # its frames hold the image, in a cycle since Python 3.12
        raise
    finally:
        # The receiver must not create a file after it is removed. If an interrupt came before the thread
        # started, the thread finds the stream aborted.
        if receiver.is_alive():
            receiver.join()
        if stream.failure is not None:
            raise RowsNotTaken(stream.failure) from None


def reduced_rows(rows: Iterable[np.ndarray], shape: RowShape, height: int, width: int) -> np.ndarray:
    """Return an image, given as rows, reduced as `reduced` does: (height, width, channels).

    Only the reduced image is in memory as a whole.
    """
    if (shape.height, shape.width) == (height, width):
        return np.concatenate(list(rows))
    found: list[np.ndarray] = []
    with row_stream(shape, lambda image: found.append(reduced(image, height, width).numpy())) as stream:
        for some in rows:
            stream.write(some)
    return found[0].reshape(height, width, shape.channels)


def _receive(stream: PngStream, receive: Callable[[Any], object]) -> None:
    """Run the receiver; runs in its thread."""
    failure = None
    try:
        import pyvips

        source = pyvips.SourceCustom()
        source.on_read(stream.read)
        receive(pyvips.Image.pngload_source(source, access="sequential", unlimited=True, fail_on="error"))
    except BaseException as error:
        failure = str(error) or type(error).__name__
    finally:
        stream.end_reading(failure)
