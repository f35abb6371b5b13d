"""Ports of this machine for the servers that a test starts, and feeder addresses that let the system choose."""

from __future__ import annotations

import socket

# ZeroMQ binds this address to a port that the system chooses.
ANY_PORT = "tcp://127.0.0.1:0"
ANY_ADDRESSES = {"market_addr": ANY_PORT, "trade_addr": ANY_PORT, "ask_addr": ANY_PORT}


def free_port() -> int:
    """Return a port that is free now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return `count` different ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
