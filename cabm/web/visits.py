"""What the server keeps for each open page: a job, and a folder that goes with the page."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from cabm.web.jobs import Job, Progress
from cabm.web.pictures import Shown


@dataclass
class Visit:
    """One open page.

    Attributes:
        folder: for the files of its last job.
        job: its last job.
        open: whether the page is still there.
    """

    folder: Path | None = None
    job: Job[Shown] | None = None
    open: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def shown(self) -> Shown | None:
        """The result of the last job, when it is done."""
        return None if self.job is None else self.job.result

    def new_folder(self, root: Path) -> Path:
        """Forget the last job, and return an empty folder for the next, with a name nobody can guess."""
        with self.lock:
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
            root.mkdir(parents=True, exist_ok=True)
            self.job, self.folder = None, Path(tempfile.mkdtemp(dir=root))
            return self.folder

    def start(self, job: Job[Shown]) -> Job[Shown]:
        """Start a job; at once cancelled if the page is gone."""
        with self.lock:
            self.job = job
            if not self.open:
                job.cancel()
            return job.start()


class Visits:
    """All open pages by the session that their requests name.

    Args:
        root: folder for the folders of the pages.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._open: dict[str, Visit] = {}

    def __getitem__(self, session: str) -> Visit:
        with self._lock:
            return self._open.setdefault(session, Visit())

    def __len__(self) -> int:
        return len(self._open)

    def cancel(self, session: str) -> Progress:
        """Cancel the job of a page; return how far it was when it had stopped."""
        job = self[session].job
        if job is None:
            return Progress()
        job.cancel()
        return job.wait()

    def close(self, session: str) -> Progress | None:
        """End the job of a page that was closed, and remove its files; return how far the job was."""
        with self._lock:
            visit = self._open.pop(session, None)
        if visit is None:
            return None
        progress = None
        with visit.lock:
            visit.open = False
            if visit.job is not None:
                visit.job.cancel()
        if visit.job is not None:
            progress = visit.job.wait()
        if visit.folder is not None:
            shutil.rmtree(visit.folder, ignore_errors=True)
        return progress

    def close_all(self) -> None:
        """Close every page."""
        for session in list(self._open):
            self.close(session)
