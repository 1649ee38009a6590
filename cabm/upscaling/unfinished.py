"""A result whose last rows are still being encoded."""

from __future__ import annotations

from contextlib import ExitStack

from cabm.imaging.writer import RowWriter
from cabm.upscaling.report import Report
from cabm.upscaling.trace import Trace


class UnfinishedFile:
    """A file whose rows are all computed; the last ones are being encoded in another thread.

    Made by `Upscaler.start_file`. The file appears under its name in `finish`.
    """

    def __init__(self, rows: RowWriter, writing: ExitStack, trace: Trace, report: Report) -> None:
        self._rows, self._writing, self._trace, self._report = rows, writing, trace, report

    @property
    def encoded(self) -> bool:
        """Whether `finish` need not wait."""
        return self._rows.encoded

    def finish(self) -> Report:
        """Wait for the encoder, and give the file its name.

        Raises:
            InputError: the file cannot be written.
        """
        with self._trace.clock("total"), self._trace.clock("encode"):
            self._writing.close()
        return self._report
