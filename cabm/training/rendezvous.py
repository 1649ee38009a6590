"""Where the processes of one machine meet: a store that listens on the loopback alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

BACKEND = "cabm-loopback"
LOOPBACK = "127.0.0.1"
_INTERFACES = ("lo", "lo0")  # Linux; macOS and BSD


class LoopbackRendezvous(RendezvousHandler):
    """One node, which waits for no other.

    torchrun's own rendezvous, ``--standalone`` too, put their store on all interfaces of the machine,
    where whoever reaches it can write to it.

    Args:
        run_id: prefix of the launcher's own keys in the store.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        with socket.create_server((LOOPBACK, 0)) as listener:
            self._port = int(listener.getsockname()[1])
            self._store = TCPStore(
                LOOPBACK,
                self._port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=os.dup(listener.fileno()),  # the store closes it
            )

    def get_backend(self) -> str:
        """Return the name that it is registered by."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Whether the processes use this store, and open none of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store; this node is the first of one."""
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, self._port))

    def is_closed(self) -> bool:
        """Whether no node may join any more: there is none that could."""
        return False

    def set_closed(self) -> None:
        """Let no node join any more."""

    def num_nodes_waiting(self) -> int:
        """Return how many nodes wait to join."""
        return 0

    def get_run_id(self) -> str:
        """Return the name of the run."""
        return self._run_id

    def shutdown(self) -> bool:
        """End it; the store goes with this process."""
        return True


def register() -> None:
    """Make `BACKEND` known to torchrun's launcher in this process."""
    rendezvous_handler_registry.register(BACKEND, _create)


def loopback_interface(names: Iterable[str]) -> str | None:
    """Return which of a machine's network interfaces is the loopback; None if that has another name."""
    return next((name for name in names if name in _INTERFACES), None)


def _create(parameters: RendezvousParameters) -> LoopbackRendezvous:
    return LoopbackRendezvous(parameters.run_id)
