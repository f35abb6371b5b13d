"""A listening socket that a service manager has opened: systemd's socket activation (sd_listen_fds(3)).

The manager keeps the socket open while the service restarts, so connections wait in it and are not refused.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from qmt_bridge.errors import ConfigError

# The number of the first descriptor that is handed over.
FIRST = 3
_PID, _COUNT, _NAMES = "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"


def inherited(environ: MutableMapping[str, str], pid: int, first: int = FIRST) -> socket.socket | None:
    """Return the TCP socket that was handed to process `pid`; None without one; raise `ConfigError` for another kind.

    The variables are removed: they are for this process, and its children must not take the descriptor for theirs.
    """
    given = {name: environ.pop(name, "") for name in (_PID, _COUNT, _NAMES)}
    if given[_PID] != str(pid):
        return None
    if given[_COUNT] != "1":
        raise ConfigError(_COUNT, f"one socket is served, not {given[_COUNT][:20]!r}: name one ListenStream=")
    # Descriptors that come from a service manager are for this process alone.
    try:
        os.set_inheritable(first, False)
        found = socket.socket(fileno=first)
    except OSError as exc:
        raise ConfigError(_COUNT, f"descriptor {first} is no socket: {exc.strerror}") from exc
    if (
        found.family not in (socket.AF_INET, socket.AF_INET6)
        or found.type != socket.SOCK_STREAM
        or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        found.close()
        raise ConfigError(_COUNT, f"descriptor {first} is no TCP socket that listens: use ListenStream= and Accept=no")
    return found
