"""The ports that tests hand to processes: no two tests get the same, and the system gives none of them."""

from __future__ import annotations

import socket

import pytest

from tests.support import ports


def test_no_port_is_handed_out_twice() -> None:
    taken = [ports.free_port() for _ in range(20)] + ports.free_ports(20)
    assert len(set(taken)) == 40


def test_workers_of_xdist_have_different_ports() -> None:
    parts = [ports.part_of(worker, end=15_000) for worker in ("gw0", "gw1", "gw4")]
    assert parts == [range(10_000, 11_000), range(11_000, 12_000), range(14_000, 15_000)]
    assert ports.part_of("", end=15_000) == parts[0]


def test_no_port_is_one_that_the_system_gives() -> None:
    end = ports.first_ephemeral()
    assert all(max(ports.part_of(f"gw{number}", end)) < end for number in range(100))


def test_a_port_in_use_is_passed_over() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        used = bound.getsockname()[1]
        assert list(ports._numbers(range(used, used + 1), start=0)) == []


def test_the_ports_of_a_part_are_tried_from_a_place_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_is_free", lambda port: port != 11)
    assert list(ports._numbers(range(10, 14), start=6)) == [12, 13, 10]


def test_a_part_that_is_used_up_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_unused", iter([1]))
    with pytest.raises(AssertionError, match="used up"):
        ports.free_ports(2)


def test_the_addresses_of_a_feeder_are_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_unused", iter([1, 2]))
    options = ["--market-addr=tcp://127.0.0.1:1", "--ask-addr=tcp://127.0.0.1:2"]
    assert ports.address_options(ports.free_addresses()) == options
