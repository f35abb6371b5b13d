"""Ports that one program alone listens at."""

from __future__ import annotations

import errno
import socket
import sys
from types import SimpleNamespace

import pytest
import zmq

from qmt_bridge import sockets
from qmt_bridge.commands.doctor.facts import network
from qmt_bridge.errors import ConfigError
from qmt_bridge.system import ports

windows = pytest.mark.skipif(sys.platform != "win32", reason="only Windows lets two programs bind one port")


def test_windows_is_asked_for_the_port_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere the option of the other branch would let two programs bind one port on Windows."""
    set_options: list[object] = []
    monkeypatch.setattr(ports.sys, "platform", "win32")
    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    ports.claim(SimpleNamespace(setsockopt=lambda *args: set_options.append(args)))  # type: ignore[arg-type]
    assert set_options == [(socket.SOL_SOCKET, -5, 1)]


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "127.0.0.1"])
def test_a_claimed_port_cannot_be_bound_by_another(everywhere: str) -> None:
    with socket.socket() as ours, socket.socket() as other:
        ports.claim(ours)
        ours.bind((everywhere, 0))
        ours.listen(1)
        port = ours.getsockname()[1]
        # What a program does that wants the connections of another one.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match=r".") as refused:
            other.bind(("127.0.0.1", port))
        assert ports.is_taken(refused.value) or isinstance(refused.value, PermissionError)
        assert network.bind_error("127.0.0.1", port) is not None


@windows
def test_libzmq_has_its_ports_alone_on_windows() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        bound = sockets.bind_publisher(context, "market_addr", "tcp://127.0.0.1:0", None)
        address = str(bound.last_endpoint, "ascii").rstrip("\0")
        with socket.socket() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match=r"."):
                other.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        with pytest.raises(ConfigError, match=f"market_addr: cannot listen on {address}"):
            sockets.bind_publisher(context, "market_addr", address, None)
    finally:
        context.destroy(linger=0)


def test_a_port_that_windows_has_reserved_is_explained() -> None:
    said = ports.reserved(10013, 8000)
    assert "Windows has reserved port 8000" in said
    assert "netsh interface ipv4 show excludedportrange" in said
    assert ports.reserved(10048, 8000) == ""
    assert ports.reserved(None, 8000) == ""


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EADDRINUSE, "Address already in use"), (errno.EADDRNOTAVAIL, "no such address")],
)
def test_a_port_that_is_taken_has_the_same_words_everywhere(number: int, said: str) -> None:
    """Windows' own sentence speaks of a protocol, a network address and a usage."""
    text = "no such address" if number == errno.EADDRNOTAVAIL else "Only one usage of each socket address"
    assert ports.why_not(OSError(number, text), 8000) == said
