"""Requests before the WebSockets: each address has a share of the loop's time, and the loop takes one at a time.

A handshake with its session takes a worker some 0.7 ms: 50 connections that come again and again took all its time, and
200 that came together held up everything else for 150 ms.
"""

from __future__ import annotations

import asyncio

from gateway.connections.intake import Meter, Queue

# Seconds of the loop that one request takes.
REQUEST_COST = 0.0007
# The part of the loop's time that the requests of one address may take without delay (350 a second), and the seconds
# that they may take at once (1,000 requests).
ADDRESS_SHARE = 0.25
ADDRESS_BURST = 0.7
# The part that all addresses get together which have spent their own.
OVER_SHARE = 0.2
# Addresses whose spending is kept.
MAX_ADDRESSES = 10_000


class _Address(Meter):
    """The requests of one address."""

    __slots__ = ()
    share = ADDRESS_SHARE
    burst = ADDRESS_BURST


class _All(Meter):
    """The requests of all addresses that are within their share: the loop does other work between two of them."""

    __slots__ = ()
    share = 1.0
    burst = 0.0


class _Over(Meter):
    """The requests of all addresses that have spent theirs."""

    __slots__ = ()
    share = OVER_SHARE
    burst = 0.0


class Arrivals(Queue):
    """The connections of one loop that have a whole request, in the order in which they came."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop, _All, _Over)
        self._addresses: dict[str, Meter] = {}

    def meter(self, address: str, now: float) -> Meter:
        """Return what the requests of an address have cost."""
        meter = self._addresses.get(address)
        if meter is None:
            if len(self._addresses) >= MAX_ADDRESSES:
                self._forget(now)
            meter = self._addresses[address] = _Address()
        return meter

    def _forget(self, now: float) -> None:
        """Keep the addresses that owe something; if these are too many, none: a new meter allows a burst at most."""
        owing = {address: meter for address, meter in self._addresses.items() if meter.debt(now) > 0}
        self._addresses = owing if len(owing) < MAX_ADDRESSES else {}
