"""Upscale many images on a Ray cluster; the only importer of Ray.

Names travel to the workers and outcomes come back; images go from the store to a worker and from it to the
store, and nowhere else. Ray Data keeps as many workers busy as there are, gives what a dead worker had in
hand to another, and holds names back while all are busy.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabm.cluster.work import Attempts, Item, Outcome, Recipe, Worker, chunks
from cabm.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef

_LOCAL_STORE_BYTES = 256 << 20  # for names and outcomes; no image is ever in it
_LOOPBACK = "127.0.0.1"
_START_ATTEMPTS = 3


@dataclass(frozen=True)
class Cluster:
    """What the machines of a cluster offer: processors and GPUs of each."""

    machines: tuple[tuple[int, int], ...]

    @property
    def num_gpus(self) -> int:
        """GPUs of all."""
        return sum(gpus for _, gpus in self.machines)

    def room(self, device: str, threads: int) -> int:
        """Return how many workers of a GPU, or of that many threads, the machines have room for."""
        return self.num_gpus if device == "cuda" else sum(cpus // threads for cpus, _ in self.machines)


@contextmanager
def cluster(address: str | None, *, local_cpus: int) -> Iterator[Cluster]:
    """Connect to a Ray cluster for the block, or have one on this machine.

    One on this machine listens on the loopback alone, has no dashboard, and its workers run at the
    priority of this process. Ray's usage report is off.

    Args:
        address: ``HOST:PORT`` or ``auto``; None: one of this machine's own.
        local_cpus: its processors.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # what Ray has to say is in its logs; the job itself tells of dead workers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    where: dict[str, Any] = {"address": address}
    if address is None:
        # without clusters Ray takes the loopback for the address of its node; read when Ray is imported
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray's own choice is 15: beside anything else that computes, its workers get next to nothing
        os.environ.setdefault("RAY_worker_niceness", "0")
        where = {
            "address": "local",
            "num_cpus": local_cpus,
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
            "_node_ip_address": _LOOPBACK,
        }
    try:
        import ray
        import ray.data
        import ray.data.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError(f'--ray needs Ray Data ({error}); pip install "cabm[ray]"') from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _connect(where, attempts=_START_ATTEMPTS if address is None else 1)
    try:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources))
    except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
        raise _input_error(error) from None
    finally:
        ray.shutdown()


class Job:
    """Images to upscale on the cluster that is connected.

    Args:
        recipe: how.
        num_workers: processes, each with a model of its own.
        items: which; their names are in Ray's store afterwards, not in this process.

    Attributes:
        num_items: how many there are.
    """

    def __init__(self, recipe: Recipe, num_workers: int, items: Iterable[Item]) -> None:
        import ray

        self._recipe = recipe
        self._num_workers = num_workers
        self.num_items = 0
        self._chunks: list[ObjectRef] = []
        for chunk in chunks(items, num_workers):
            self._chunks.append(ray.put(_to_table(chunk)))
            self.num_items += len(chunk)
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=True
        )
        # it lives where this process lives, and not on a machine that may go away
        self._attempts = (
            ray.remote(Attempts)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote()
        )

    def run(self) -> Iterator[Outcome]:
        """Upscale the images; yield what became of each, in any order.

        Raises:
            InputError: no worker can run the model.
        """
        import ray

        if not self._chunks:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        needed = {"num_gpus": 1} if self._recipe.device == "cuda" else {"num_cpus": self._recipe.threads}
        outcomes = ray.data.from_arrow_refs(self._chunks).map_batches(
            _Worker,
            fn_constructor_args=(self._recipe, self._attempts),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._num_workers, max_tasks_in_flight_per_actor=2),
            **needed,
        )
        for row in outcomes.iter_rows():
            yield Outcome(**{**row, "notes": tuple(row["notes"])})

    def deaths(self) -> dict[str, int]:
        """Return how many workers died at which images."""
        import ray

        return ray.get(self._attempts.deaths.remote())


class _Worker:
    """An actor of the pool."""

    def __init__(self, recipe: Recipe, attempts: Any) -> None:
        self._attempts = attempts
        self._source = recipe.source
        self._error: InputError | None = None
        try:
            self._upscale: Callable[[Item, int], Outcome] = Worker(recipe)
        except InputError as error:  # a constructor that fails is tried again for ever; a call is not
            self._error = error

    def __call__(self, table: pa.Table) -> pa.Table:
        import ray

        if self._error is not None:
            raise self._error
        (item,) = _from_table(table)
        address = self._source.address(item.source)
        deaths = ray.get(self._attempts.start.remote(address))
        outcome = self._upscale(item, deaths)
        ray.get(self._attempts.finish.remote(address))
        return _outcome_table(outcome)


def _connect(where: dict[str, Any], attempts: int) -> None:
    """Connect to a cluster, or start one.

    Ray gives up a start of its own when one of its helpers is not there after a fixed time. On a busy
    machine they are late; the next time their files are in memory.

    Args:
        where: for `ray.init`.
        attempts: how often to try.

    Raises:
        InputError: it failed as often.
    """
    import ray

    for attempt in range(1, attempts + 1):
        try:
            with _silent_stderr():  # the core says there at which level it logs
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # that a start took too long is no narrower one
            ray.shutdown()
            if attempt == attempts:
                place = "this machine" if where["address"] == "local" else where["address"]
                detail = " ".join(str(error).split())[:200]
                raise InputError(f"Ray at {place} cannot be reached ({detail})") from None


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Send standard error nowhere for the block, what compiled code writes there as well."""
    sys.stderr.flush()
    saved = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _to_table(items: list[Item]) -> pa.Table:
    """Names as bytes, as file systems have them: not all are UTF-8."""
    import pyarrow as pa

    columns = {name: [os.fsencode(getattr(item, name)) for item in items] for name in ("source", "output")}
    return pa.table(columns, pa.schema([(name, pa.binary()) for name in columns]))


def _from_table(table: pa.Table) -> list[Item]:
    rows = table.to_pylist()
    return [Item(os.fsdecode(row["source"]), os.fsdecode(row["output"])) for row in rows]


def _outcome_table(outcome: Outcome) -> pa.Table:
    import pyarrow as pa

    fields = asdict(outcome)
    text = {name: _printable(fields[name]) for name in ("source", "reason")}
    notes = [_printable(note) for note in outcome.notes]
    schema = pa.schema(
        [
            ("source", pa.string()),
            ("reason", pa.string()),
            ("notes", pa.list_(pa.string())),
            ("computed", pa.bool_()),
            ("cpu_seconds", pa.float64()),
            ("bytes_read", pa.int64()),
            ("bytes_written", pa.int64()),
            ("peak_bytes", pa.int64()),
        ]
    )
    return pa.Table.from_pylist([{**fields, **text, "notes": notes}], schema)


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _input_error(error: BaseException) -> InputError:
    """Find what a user can act on in an error that came from a worker."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return InputError(str(cause).splitlines()[-1])
        cause = getattr(cause, "cause", None) or cause.__cause__
    detail = " ".join(str(error).split())[:300]
    return InputError(f"Ray stopped the job ({detail}); the same command goes on where it was")
