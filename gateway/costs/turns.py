"""Which subscriptions are read a chunk of the store's records now: a few of each client, address and worker. Pure.

The others wait for their turn. So what is asked of a store, and what waits for the clients that are read it, has a
bound in bytes, whatever the number of codes that they want the morning of. A turn is one chunk: the codes of a client
are read side by side. First answers have turns of their own: a code that is added does not wait until a client has read
a chunk of each other one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

# Turns at a time.
OF_CLIENT = 2
OF_ADDRESS = 16
OF_WORKER = 64
# Of first answers: a store takes some ms for each, and what waits there makes all other clients wait.
OPENING_OF_CLIENT = 8


def chunk_bytes(outbox_bytes: int) -> int:
    """Return the bytes of one chunk: the turns of a client have half of its outbox, all else has the other half."""
    return max(1, outbox_bytes // 2 // OF_CLIENT)


class _Queue(NamedTuple):
    """The readers of one client that wait, in order, with what to call."""

    address: str
    readers: dict[Hashable, Callable[[], None]]


class Turns:
    """The turns of one worker; `limited` counts how often one was not given at once though its client had few."""

    __slots__ = ("_addresses", "_clients", "_granting", "_of_client", "_queues", "_rounds", "_taken", "limited")

    def __init__(self, of_client: int = OF_CLIENT) -> None:
        """Give each client at most `of_client` turns at a time."""
        self._of_client = of_client
        # What each reader that has a turn belongs to: client and address.
        self._taken: dict[Hashable, tuple[Hashable, str]] = {}
        self._clients: Counter[Hashable] = Counter()
        self._addresses: Counter[str] = Counter()
        # By client; the one that had no turn for the longest time comes first.
        self._queues: dict[Hashable, _Queue] = {}
        self._granting = False
        # Whether more than one turn may have become free.
        self._rounds = False
        self.limited = 0

    def ask(self, reader: Hashable, client: Hashable, address: str, act: Callable[[], None]) -> None:
        """Call `act` when it is the reader's turn, which may be at once."""
        self._queues.setdefault(client, _Queue(address, {})).readers[reader] = act
        self.limited += self._clients[client] < self._of_client and self._is_full(address)
        # All others have what they may have.
        self._grant([client])

    def give_back(self, reader: Hashable, client: Hashable) -> None:
        """End the turn of a reader, or its waiting for one."""
        queue = self._queues.get(client)
        if queue is not None and queue.readers.pop(reader, None) is not None and not queue.readers:
            del self._queues[client]
        if reader in self._taken:
            self._free(reader)
            # One turn is free, so at most one more can be given.
            self._grant(list(self._queues))

    def leave(self, client: Hashable) -> None:
        """End all turns of a client."""
        self._queues.pop(client, None)
        for reader in [reader for reader, (of, _) in self._taken.items() if of == client]:
            self._free(reader)
        self._rounds = True
        self._grant([])

    def _free(self, reader: Hashable) -> None:
        client, address = self._taken.pop(reader)
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def _is_full(self, address: str) -> bool:
        return len(self._taken) >= OF_WORKER or self._addresses[address] >= OF_ADDRESS

    def _grant(self, clients: list[Hashable]) -> None:
        """Give a turn to the first of `clients` that may have one."""
        if self._granting:
            # A reader that was given one has asked or given back.
            self._rounds = True
            return
        self._granting = True
        try:
            any(self._grant_one(client) for client in clients)
            while self._rounds:
                self._rounds = any(self._grant_one(client) for client in list(self._queues))
        finally:
            self._granting = False

    def _grant_one(self, client: Hashable) -> bool:
        queue = self._queues.get(client)
        if queue is None or self._clients[client] >= self._of_client or self._is_full(queue.address):
            return False
        reader = next(iter(queue.readers))
        act = queue.readers.pop(reader)
        del self._queues[client]
        if queue.readers:
            self._queues[client] = queue
        self._taken[reader] = (client, queue.address)
        self._clients[client] += 1
        self._addresses[queue.address] += 1
        act()
        return True
