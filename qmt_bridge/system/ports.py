"""Ports that one program alone listens at, and why one cannot be had."""

from __future__ import annotations

import errno
import socket
import sys

# Of Windows: the port is reserved, or another program has it for itself alone.
_WSAEACCES = 10013


def claim(unbound: socket.socket) -> None:
    """Let a socket that will be bound have its port alone. libzmq does the same with its own."""
    if sys.platform == "win32":
        # By default another program may bind the same port, or a part of its addresses, and get the connections.
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        # A port whose last connections just ended is free; one that somebody listens at is not.
        unbound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def is_taken(exc: BaseException) -> bool:
    """Return whether the error of a `bind` says that another socket has the port."""
    return getattr(exc, "errno", None) == errno.EADDRINUSE


def why_not(exc: OSError, port: int) -> str:
    """Return why a `bind` to a port failed, in the same words on every system."""
    if is_taken(exc):
        return "Address already in use"
    return f"{exc.strerror or exc}{reserved(getattr(exc, 'winerror', None), port)}"


def reserved(error: int | None, port: int) -> str:
    """Return a clause for the `winerror` or `errno` of a `bind` which Windows does not allow; empty for any other one.

    Hyper-V and Docker reserve hundreds of ports at each start of the machine; no list of processes shows them.
    """
    if error != _WSAEACCES and not (sys.platform == "win32" and error == errno.EACCES):
        return ""
    return (
        f"; Windows has reserved port {port}, or another program has it: see `netsh interface ipv4 show "
        "excludedportrange protocol=tcp`, and choose another port"
    )
