"""Run a job's work on a Ray cluster. No other module imports Ray.

Names travel to the workers and outcomes come back. Images travel between stores and workers only. Ray Data
keeps all workers busy, gives the work of a dead worker to another, and holds names back while all are busy.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

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
    """The processors and GPUs of each machine of a cluster."""

    machines: tuple[tuple[int, int], ...]

    @property
    def num_gpus(self) -> int:
        """Number of GPUs on all machines."""
        return sum(gpus for _, gpus in self.machines)

    def room(self, device: str, threads: int) -> int:
        """Return for how many workers there is room, each with one GPU or with so many threads."""
        return self.num_gpus if device == "cuda" else sum(cpus // threads for cpus, _ in self.machines)


@contextmanager
def cluster(address: str | None, *, local_cpus: int) -> Iterator[Cluster]:
    """Connect to a Ray cluster for the block, or start one on this machine.

    A cluster on this machine listens on the loopback only, has no dashboard, and runs its workers at the
    priority of this process. Ray's usage report is off.

    Args:
        address: ``HOST:PORT`` or ``auto``; None: start one on this machine.
        local_cpus: number of processors of a cluster on this machine.

    Raises:
        InputError: Ray is not installed, there is no cluster, or Ray stopped the job.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray's messages go to its log files only; the job itself reports dead workers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    where: dict[str, Any] = {"address": address}
    if address is None:
        # makes Ray use the loopback as the address of its node; read when Ray is imported
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # at Ray's default of 15, workers get next to no time beside other work
        os.environ.setdefault("RAY_worker_niceness", "0")
        where = {
            "address": "local",
            "num_cpus": local_cpus,
            "include_dashboard": False,
            "object_store_memory": _LOCAL_STORE_BYTES,
            "_node_ip_address": _LOOPBACK,
        }
    else:
        # a try at an address that does not answer takes half a minute, and Ray's default is 20 tries
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
        import ray.data
        import ray.data.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise InputError(f'a cluster needs Ray Data ({error}); pip install "cabm[ray]"') from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _connect(where, attempts=_START_ATTEMPTS if address is None else 1)
    try:
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(tuple((int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in resources))
    except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
        raise _input_error(error) from error
    finally:
        ray.shutdown()


class RayJob:
    """Upscales images on the connected cluster.

    Args:
        recipe: what workers need.
        num_workers: number of processes, each with a model of its own.
        items: the images. Their names are kept in Ray's store, not in this process.

    Attributes:
        num_items: number of images.
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
        # on the machine of this process, since others may go away
        self._attempts = (
            ray.remote(Attempts)
            .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)
            .remote()
        )

    def run(self) -> Iterator[Outcome]:
        """Upscale the images; yield the outcome of each, in any order.

        Raises:
            InputError: no worker can run the model.
        """
        import ray

        if not self._chunks:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        request = self._recipe.request
        needed = {"num_gpus": 1} if request.device == "cuda" else {"num_cpus": request.threads}
        outcomes = ray.data.from_arrow_refs(self._chunks).map_batches(
            _Worker,
            fn_constructor_args=(self._recipe, self._attempts),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=self._num_workers, max_tasks_in_flight_per_actor=2),
            **needed,
        )
        for row in outcomes.iter_rows():
            yield outcome_of_row(row)

    def deaths(self) -> dict[str, int]:
        """Return the images that workers died on, each with their number."""
        import ray

        return ray.get(self._attempts.deaths.remote())


class _Worker:
    """One actor of the pool."""

    def __init__(self, recipe: Recipe, attempts: Any) -> None:
        self._attempts = attempts
        self._source = recipe.source
        self._error: InputError | None = None
        try:
            self._upscale: Callable[[Item, int], Outcome] = Worker(recipe)
        except InputError as error:  # Ray repeats a constructor that fails without end, but not a call
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
        return outcome_to_table(outcome)


def _connect(where: dict[str, Any], attempts: int) -> None:
    """Connect to a cluster, or start one.

    Ray gives up on starting a cluster if one of its processes is not ready after a fixed time. On a busy
    machine the first start may fail; a second one is faster, as the files are in memory.

    Args:
        where: arguments of `ray.init`.
        attempts: number of tries.

    Raises:
        InputError: every try failed.
    """
    import ray

    for attempt in range(1, attempts + 1):
        try:
            with _silent_stderr():  # Ray's core prints its log level there
                ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises no narrower class when a start takes too long
            ray.shutdown()
            if attempt == attempts:
                place = "this machine" if where["address"] == "local" else where["address"]
                detail = " ".join(str(error).split())[:200]
                raise InputError(f"Ray at {place} cannot be reached ({detail})") from error


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard standard error for the block, including what compiled code writes to it."""
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
    """Return names as bytes: file systems allow names that are not UTF-8."""
    import pyarrow as pa

    columns = {name: [os.fsencode(getattr(item, name)) for item in items] for name in ("source", "output")}
    return pa.table(columns, pa.schema([(name, pa.binary()) for name in columns]))


def _from_table(table: pa.Table) -> list[Item]:
    rows = table.to_pylist()
    return [Item(os.fsdecode(row["source"]), os.fsdecode(row["output"])) for row in rows]


def outcome_to_table(outcome: Outcome) -> pa.Table:
    """Return an outcome as a row, with a column of the right type for each of its fields."""
    import pyarrow as pa

    types: dict[Any, Any] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    types[tuple[str, ...]] = pa.list_(pa.string())
    columns = [(name, types[hint]) for name, hint in get_type_hints(Outcome).items()]
    row = asdict(outcome) | {"notes": [_printable(note) for note in outcome.notes]}
    row |= {name: _printable(value) for name, value in row.items() if isinstance(value, str)}
    return pa.Table.from_pylist([row], pa.schema(columns))


def outcome_of_row(row: dict[str, Any]) -> Outcome:
    """Return the outcome of a row of `outcome_to_table`."""
    return Outcome(**row | {"notes": tuple(row["notes"])})


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _input_error(error: BaseException) -> InputError:
    """Return the user's error inside an error from a worker, or a line for Ray's own error."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return InputError(str(cause).splitlines()[-1])
        cause = getattr(cause, "cause", None) or cause.__cause__
    detail = " ".join(str(error).split())[:300]
    return InputError(f"Ray stopped the job ({detail}); run the same command to resume")
