"""Requests before the WebSockets: turns, and the share of an address (gateway/connections/arrivals.py)."""

from __future__ import annotations

import asyncio

import pytest

from gateway.connections import arrivals, handshake
from gateway.connections.arrivals import ADDRESS_BURST, ADDRESS_SHARE, REQUEST_COST, Arrivals
from gateway.connections.handshake import Handshake
from tests.support.raw import HEADERS, opened
from tests.support.rig import DEADLINE, Rig
from tests.support.waiting import until


async def answer(rig: Rig, address: str, headers: str = "") -> bytes:
    """Return the first line of what the newest server answers to a handshake from an address of this machine."""
    port = rig.servers[-1].port
    async with asyncio.timeout(DEADLINE), opened(port, local_addr=(address, 0)) as (reader, writer):
        writer.write(f"GET /ws/realtime HTTP/1.1\r\n{HEADERS}{headers}\r\n".encode())
        return await reader.readline()


async def test_loop_does_other_work_between_two_handshakes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    log = list[str]()
    serve = Handshake._serve

    def logged(self: Handshake, request: bytes) -> None:
        log.append("handshake")
        self.loop.call_soon(log.append, "other work")
        serve(self, request)

    monkeypatch.setattr(Handshake, "_serve", logged)
    answers = await asyncio.gather(*(answer(rig, "127.0.0.1") for _ in range(50)))
    assert all(line.startswith(b"HTTP/1.1 101") for line in answers)
    await until(lambda: len(log) == 100, "the work in between")
    # A timer of the next turn may come before what was called for in this one.
    assert "handshake handshake handshake" not in " ".join(log)


async def test_address_that_has_spent_its_share_waits(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(arrivals._Address, "burst", REQUEST_COST)
    monkeypatch.setattr(arrivals._Address, "share", 1e-9)
    monkeypatch.setattr(arrivals._Over, "share", 1e-9)
    # Two are within the burst; the third is the first one of those that have spent theirs, and the next ones wait.
    for _ in range(3):
        assert (await answer(rig, "127.0.0.2")).startswith(b"HTTP/1.1 101")
    waiting = [asyncio.create_task(answer(rig, "127.0.0.2")) for _ in range(3)]
    async with rig.connect("/ws/realtime") as client:
        await client.send({"action": "ping", "id": 5})
        assert (await client.receive())["id"] == 5
    assert not any(task.done() for task in waiting)
    for task in waiting:
        assert (await task).startswith(b"HTTP/1.1 429")


async def test_clients_of_a_trusted_proxy_have_shares_of_their_own(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QMT_BRIDGE_BEHIND_PROXY", "127.0.0.2")
    rig.serve()
    monkeypatch.setattr(handshake, "REQUEST_TIMEOUT", 0.5)
    monkeypatch.setattr(arrivals._Address, "burst", REQUEST_COST)
    monkeypatch.setattr(arrivals._Address, "share", 1e-9)
    monkeypatch.setattr(arrivals._Over, "share", 1e-9)
    for number in range(10):
        named = f"X-Forwarded-For: 10.0.0.{number}\r\n"
        assert (await answer(rig, "127.0.0.2", named)).startswith(b"HTTP/1.1 101")


def test_address_may_connect_often_at_once() -> None:
    assert int(ADDRESS_BURST / REQUEST_COST) >= 999
    assert ADDRESS_SHARE / REQUEST_COST > 350


async def test_addresses_are_forgotten_unless_they_owe_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MAX_ADDRESSES", 3)
    kept = Arrivals(asyncio.get_running_loop())
    owing = kept.meter("a", 100.0)
    owing.spend(10.0, 100.0)
    for address in "bcd":
        kept.meter(address, 100.0)
    assert kept.meter("a", 100.0) is owing
    assert set(kept._addresses) == {"a", "d"}
    for address in "adef":
        kept.meter(address, 100.0).spend(10.0, 100.0)
    assert len(kept._addresses) <= 3
