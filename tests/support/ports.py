"""Ports of this machine for the servers that a test starts, and feeder addresses that let the system choose.

A test that needs a number before a process binds it takes it from here. The system may give a number that it gave
once, and that was closed again, to another test before the process binds it. So the numbers of this file are below
the range from which the system gives, each worker of pytest-xdist has its own part of them, each is tried before it
is handed out, and none is handed out twice in a run.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from qmt_bridge.config import env_name

LOCAL = "127.0.0.1"
# ZeroMQ binds this address to a port that the system chooses.
ANY_PORT = f"tcp://{LOCAL}:0"
# The settings of the feeder's addresses. Those of trade events are left at their defaults, in the data folder; but on
# Windows the defaults are two ports of the machine.
WIRE = ("market_addr", "ask_addr") + (("trade_addr", "trade_ask_addr") if sys.platform == "win32" else ())
# Those of `qmt-bridge up`, which starts a store too.
UP = (*WIRE, "store_addr")
# Two addresses of the same text would be one socket for all questions; this one means the same as ANY_PORT.
ANY_ADDRESSES = dict.fromkeys(WIRE, ANY_PORT) | {name: f"tcp://{LOCAL}:*" for name in WIRE if name == "trade_ask_addr"}

# The default ports of this project are below.
FIRST = 10_000
# A whole run of the tests takes about four hundred.
PART = 1000
RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def first_ephemeral() -> int:
    """Return the lowest port that the system gives to a socket that asks for any; only Linux tells it."""
    return int(RANGE.read_text(encoding="ascii").split()[0]) if RANGE.exists() else 32_768


def part_of(worker: str, end: int) -> range:
    """Return the ports of a worker of pytest-xdist ("gw0", "gw1" ...; empty without xdist), all below `end`."""
    part = int(worker.removeprefix("gw") or 0) % ((end - FIRST) // PART)
    return range(FIRST + part * PART, FIRST + (part + 1) * PART)


def _numbers(part: range, start: int) -> Iterator[int]:
    """Yield each free port of the part once, from place `start` on."""
    for place in range(len(part)):
        port = part[(start + place) % len(part)]
        if _is_free(port):
            yield port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((LOCAL, port))
        except OSError:
            return False
    return True


# Two runs on one machine have the same parts: they start at different places.
_unused = _numbers(part_of(os.environ.get("PYTEST_XDIST_WORKER", ""), first_ephemeral()), os.getpid() * 61)


def free_ports(count: int) -> list[int]:
    """Return `count` ports that are free and that no other test of this run gets."""
    ports = list(islice(_unused, count))
    assert len(ports) == count, f"the {PART} ports of this worker are used up"
    return ports


def free_port() -> int:
    """Return a port that is free and that no other test of this run gets."""
    return free_ports(1)[0]


def tcp(port: int) -> str:
    """Return the ZeroMQ address of a port of this machine."""
    return f"tcp://{LOCAL}:{port}"


def free_addresses() -> dict[str, str]:
    """Return the address settings of a feeder, at free ports."""
    return {name: tcp(port) for name, port in zip(WIRE, free_ports(len(WIRE)), strict=True)}


def up_addresses() -> dict[str, str]:
    """Return the address settings of a feeder and a store, at free ports."""
    return {**free_addresses(), "store_addr": tcp(free_port())}


def address_options(addresses: dict[str, str]) -> list[str]:
    """Return the options of the command line that set the addresses."""
    return [f"--{name.replace('_', '-')}={address}" for name, address in addresses.items()]


def address_env(addresses: dict[str, str]) -> dict[str, str]:
    """Return the environment variables that set the addresses."""
    return {env_name(name): address for name, address in addresses.items()}
