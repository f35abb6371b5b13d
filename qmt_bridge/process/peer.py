"""Whose the other end of a local TCP connection is, as far as the system tells this user.

Linux tells it in a file, Windows in a table. On macOS psutil lists all connections, in a process of its own, because
that may take long and keeps the whole interpreter waiting meanwhile (see `qmt_bridge.process.holder`).
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

from qmt_bridge.config import ENV_PREFIX
from qmt_bridge.process.child import python

# Address and port, as `socket.getsockname` begins.
Address = tuple[str, int]
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_ESTABLISHED = "01"
# Seconds that psutil may take.
_LIMIT = 5.0


def is_ours(peer: Address, here: Address) -> bool | None:
    """Return whether the end `peer` of a connection to `here` belongs to a process of this user; None if not known."""
    if sys.platform == "linux":
        return _is_ours_by_tables(peer, here)
    if sys.platform == "win32":
        # There is no such code elsewhere.
        from qmt_bridge.process import windows_peer

        return windows_peer.is_ours(peer, here)
    # It needs no setting, and none of the secrets among them.
    env = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    command = python("qmt_bridge.process.peer", str(peer[1]), str(here[1]))
    try:
        found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=_LIMIT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {0: True, 1: False}.get(found.returncode)


def owner_in(lines: Iterable[str], peer: Address, here: Address) -> int | None:
    """Return the user of the connection from `peer` to `here` in a table of /proc/net; None if it is not there.

    Only an established connection tells it: one that its process has closed belongs to the user 0.
    """
    wanted = f"{_hexadecimal(peer)} {_hexadecimal(here)} {_ESTABLISHED}"
    mapped = f"{_hexadecimal(_mapped(peer))} {_hexadecimal(_mapped(here))} {_ESTABLISHED}"
    for line in lines:
        fields = line.split()
        # The inode is 0 once no process has the socket.
        if len(fields) > 9 and " ".join(fields[1:4]) in (wanted, mapped) and fields[9] != "0":
            return int(fields[7])
    return None


def _is_ours_by_tables(peer: Address, here: Address) -> bool | None:
    for table in _TABLES:
        try:
            with table.open(encoding="ascii") as lines:
                owner = owner_in(lines, peer, here)
        except OSError:
            continue
        if owner is not None:
            return owner == os.getuid()
    return None


def _hexadecimal(address: Address) -> str:
    # The kernel prints each word of four bytes as a number of this machine.
    packed = ipaddress.ip_address(address[0].partition("%")[0]).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words) + f":{address[1]:04X}"


def _mapped(address: Address) -> Address:
    """Return an address of IPv4 as IPv6 writes it: the table of a program that uses IPv6 sockets for both."""
    return (f"::ffff:{address[0]}", address[1]) if "." in address[0] and ":" not in address[0] else address


def _look(peer_port: int, here_port: int) -> int:
    """Return 0 if a process of this user has the connection, 1 if another one's, 2 if the system does not tell."""
    own = psutil.Process().username()
    for connection in psutil.net_connections("tcp"):
        if not connection.raddr or (connection.laddr.port, connection.raddr.port) != (peer_port, here_port):
            continue
        if connection.pid is None:
            return 2
        return 0 if psutil.Process(connection.pid).username() == own else 1
    return 2


if __name__ == "__main__":
    try:
        code = _look(int(sys.argv[1]), int(sys.argv[2]))
    except (psutil.Error, OSError):
        # macOS shows the connections of all processes only to root.
        code = 2
    sys.exit(code)
