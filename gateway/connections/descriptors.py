"""File descriptors: each connection takes one, and a process or a loop has only so many (RLIMIT_NOFILE, select())."""

from __future__ import annotations

import asyncio
import logging
import sys
import time

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

# Descriptors that a worker needs besides its WebSockets: ZeroMQ, files, and connections that have not opened one yet.
OTHERS = 1000
# New connections are refused while fewer are left: the worker itself may have to open something.
RESERVE = 16
# The most connections of one address that have sent no whole request.
MOST_BARE = 10_000
# Seconds between two lines in the log that say so.
REPEAT = 10.0
# WebSockets of a worker whose loop waits in Windows' select(), which fails beyond 512 sockets (FD_SETSIZE of CPython):
# then the loop would end, and with it every client. Some are for handshakes and for the feeder.
SELECTED = 448


def raise_limit(sockets: int) -> None:
    """Let this process and its children have `sockets` connections each, as far as the system allows; log if not."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sockets + OTHERS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError) as exc:
        logger.warning("the limit of open files stays at %d: %s", soft, exc)
        allowed = soft
    if allowed < wanted:
        logger.warning(
            "this process may open %d files; max_connections = %d needs %d: raise it (ulimit -Hn, LimitNOFILE=)",
            allowed,
            sockets,
            wanted,
        )


def places(loop: asyncio.AbstractEventLoop, wanted: int) -> int:
    """Return how many WebSockets the loop may serve, at most `wanted`; log if that is less.

    `qmt-bridge gateway` takes another loop on Windows; uvicorn with several workers takes this one.
    """
    if sys.platform != "win32" or not isinstance(loop, asyncio.SelectorEventLoop) or wanted <= SELECTED:
        return wanted
    logger.warning(
        "this event loop serves at most %d WebSockets on Windows, not %d (max_connections): start the gateway with "
        "`qmt-bridge gateway`, or uvicorn with one worker",
        SELECTED,
        wanted,
    )
    return SELECTED


class Descriptors:
    """Notices when a worker runs out of descriptors."""

    def __init__(self) -> None:
        self._told_at = float("-inf")
        self._refused = 0

    def scarce(self, newest: int) -> bool:
        """Return whether hardly any descriptor is left; `newest` was just opened.

        The system gives each new file the lowest free number, so the number tells how many are open. libuv accepts and
        closes connections for which there is no descriptor, and tells nobody.
        """
        if sys.platform == "win32":
            return False
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return soft != resource.RLIM_INFINITY and newest >= soft - RESERVE

    def share(self) -> int:
        """Return how many connections of one address may be open that have sent no whole request: half of all."""
        if sys.platform == "win32":
            return MOST_BARE
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return MOST_BARE if soft == resource.RLIM_INFINITY else min(MOST_BARE, soft // 2)

    def tell(self) -> None:
        """Log that a connection was refused; at most once in `REPEAT` seconds."""
        self._refused += 1
        now = time.monotonic()
        if now - self._told_at >= REPEAT:
            logger.warning(
                "%d connections refused: this process has hardly any file descriptor left (limit of open files)",
                self._refused,
            )
            self._told_at = now
            self._refused = 0
