"""Which subscriptions are read a chunk of the store's records now: a few of each client, address and worker. Pure.

The others wait for their turn. So what is asked of a store, and what waits for the clients that are read it, has a
bound in bytes, whatever the number of codes that they want the morning of. A turn is one chunk of some units of bytes:
the many codes of a client are read side by side, in small chunks, since most of them have little left to read; few have
large ones. First answers have turns of their own: a code that is added does not wait until a client has read a chunk of
each other one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import NamedTuple

# Units of the turns at a time.
OF_CLIENT = 16
OF_ADDRESS = 128
OF_WORKER = 512
# Units of a large chunk, so that the next one is made while it is sent.
LARGEST = OF_CLIENT // 2
# Of first answers: a store takes some ms for each, and what waits there makes all other clients wait. So each counts as
# a large chunk, and a client has eight of them.
OPENING_OF_CLIENT = 8 * LARGEST


def unit_bytes(outbox_bytes: int) -> int:
    """Return the bytes of a unit: the turns of a client have half of its outbox, all else has the other half."""
    return max(1, outbox_bytes // 2 // OF_CLIENT)


def chunk_bytes(outbox_bytes: int, readers: int) -> int:
    """Return the bytes of one chunk of a client that wants to be read so many codes."""
    return unit_bytes(outbox_bytes) * max(1, min(LARGEST, OF_CLIENT // max(1, readers)))


class _Waiting(NamedTuple):
    """What to call when a reader has its turn, and its units."""

    act: Callable[[], None]
    units: int


class _Taken(NamedTuple):
    """A turn: whose it is, and its units."""

    client: Hashable
    address: str
    units: int


class _Queue(NamedTuple):
    """The readers of one client that wait, in order."""

    address: str
    readers: dict[Hashable, _Waiting]


class Turns:
    """The turns of one worker; `limited` counts how often one was not given at once though its client had few."""

    __slots__ = ("_addresses", "_all", "_clients", "_granting", "_of_client", "_queues", "_rounds", "_taken", "limited")

    def __init__(self, of_client: int = OF_CLIENT) -> None:
        """Give each client turns of at most `of_client` units at a time."""
        self._of_client = of_client
        self._taken: dict[Hashable, _Taken] = {}
        # The units of the turns of each client, of each address, and of all.
        self._clients: Counter[Hashable] = Counter()
        self._addresses: Counter[str] = Counter()
        self._all = 0
        # By client; the one that had no turn for the longest time comes first.
        self._queues: dict[Hashable, _Queue] = {}
        self._granting = False
        # Whether more than one turn may have become free.
        self._rounds = False
        self.limited = 0

    def ask(self, reader: Hashable, client: Hashable, address: str, act: Callable[[], None], units: int = 1) -> None:
        """Call `act` when it is the reader's turn for so many units, which may be at once."""
        waiting = _Waiting(act, min(units, self._of_client))
        self._queues.setdefault(client, _Queue(address, {})).readers[reader] = waiting
        self.limited += self._clients[client] < self._of_client and self._is_full(address)
        # All others have what they may have.
        self._grant([client])

    def give_back(self, reader: Hashable, client: Hashable) -> None:
        """End the turn of a reader, or its waiting for one."""
        queue = self._queues.get(client)
        if queue is not None and queue.readers.pop(reader, None) is not None and not queue.readers:
            del self._queues[client]
        if reader in self._taken:
            # No more turns can be given than units are free now.
            for _ in range(self._free(reader)):
                if not self._grant(list(self._queues)):
                    break

    def leave(self, client: Hashable) -> None:
        """End all turns of a client."""
        self._queues.pop(client, None)
        for reader in [reader for reader, taken in self._taken.items() if taken.client == client]:
            self._free(reader)
        self._rounds = True
        self._grant([])

    def _free(self, reader: Hashable) -> int:
        """End a turn; return its units."""
        client, address, units = self._taken.pop(reader)
        self._all -= units
        self._clients[client] -= units
        if not self._clients[client]:
            del self._clients[client]
        self._addresses[address] -= units
        if not self._addresses[address]:
            del self._addresses[address]
        return units

    def _is_full(self, address: str) -> bool:
        # A large turn needs one free unit only, or small ones would take each unit that becomes free.
        return self._all >= OF_WORKER or self._addresses[address] >= OF_ADDRESS

    def _grant(self, clients: list[Hashable]) -> bool:
        """Give a turn to the first of `clients` that may have one; return whether there was one."""
        if self._granting:
            # A reader that was given one has asked or given back.
            self._rounds = True
            return False
        self._granting = True
        try:
            granted = any(self._grant_one(client) for client in clients)
            while self._rounds:
                self._rounds = any(self._grant_one(client) for client in list(self._queues))
        finally:
            self._granting = False
        return granted

    def _grant_one(self, client: Hashable) -> bool:
        queue = self._queues.get(client)
        if queue is None:
            return False
        reader, (act, units) = next(iter(queue.readers.items()))
        if self._clients[client] + units > self._of_client or self._is_full(queue.address):
            return False
        del queue.readers[reader]
        del self._queues[client]
        if queue.readers:
            self._queues[client] = queue
        self._taken[reader] = _Taken(client, queue.address, units)
        self._clients[client] += units
        self._addresses[queue.address] += units
        self._all += units
        act()
        return True
