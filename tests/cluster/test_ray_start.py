"""A failed start of a local cluster is repeated; connecting to another cluster is tried once."""

from __future__ import annotations

import pytest

from cabm.cluster.ray_job import Cluster, cluster
from cabm.errors import InputError

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")
pytest.importorskip("ray.data")


class FailingStarts:
    """Stands in for `ray.init`; the first calls fail, as Ray does on a busy machine."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    def __call__(self, **options: object) -> None:
        self.calls += 1
        if self.calls <= self.failures:
            raise Exception("The current node timed out\nduring startup.")


def starts(monkeypatch: pytest.MonkeyPatch, failures: int) -> FailingStarts:
    for variable in ("RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness"):
        monkeypatch.setenv(variable, "0")  # otherwise the block sets them for the whole process
    init = FailingStarts(failures)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])
    return init


def test_a_start_that_ray_gave_up_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    init = starts(monkeypatch, failures=2)
    with cluster(None, local_cpus=2) as offered:
        assert offered == Cluster(((2, 0),))
    assert init.calls == 3


@pytest.mark.parametrize(
    ("address", "place", "calls"), [(None, "this machine", 3), ("host:1", "host:1", 1)]
)
def test_a_ray_that_never_starts_is_one_line(
    address: str | None, place: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    init = starts(monkeypatch, failures=9)
    with pytest.raises(InputError) as caught, cluster(address, local_cpus=2):
        pass
    assert str(caught.value) == (
        f"Ray at {place} cannot be reached (The current node timed out during startup.)"
    )
    assert init.calls == calls
