"""The end of the console on Windows: its window is closed, its user logs off, or the machine is shut down.

Windows calls a handler for this, and ends the process once the handler returns, or after five seconds. Python's runtime
makes a SIGBREAK of it and returns at once, so that nothing of the process would be closed in order. Elsewhere there is
no such thing: the end of a terminal is SIGHUP.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable

# The events of SetConsoleCtrlHandler. Ctrl-C is left to Python.
BREAK, CLOSE, LOGOFF, SHUTDOWN = 1, 2, 5, 6
# Seconds: longer than Windows lets a process live after such an event.
HOLD_SECONDS = 60.0
# The session of services. Every service is told of each log-off, whoever logs off.
_SERVICES = 0


def take(event: int, session: int, ask: Callable[[], None], hold: Callable[[float], None]) -> bool:
    """Take an event of the console in a Windows `session`; return False for one that is left to Python.

    `ask` asks the process to end, and `hold` keeps Windows waiting for that. The log-off of others does not end a
    service.
    """
    if event == BREAK:
        # Windows goes on at once. Python does the same, but not on Wine, whose C runtime knows Ctrl-C alone.
        ask()
        return True
    if event not in (CLOSE, LOGOFF, SHUTDOWN):
        return False
    if event != LOGOFF or session != _SERVICES:
        ask()
        hold(HOLD_SECONDS)
    return True


def _ask() -> None:
    # What handles Ctrl-Break ends the process in order; where nothing does, this ends it at once.
    signal.raise_signal(signal.SIGBREAK)  # type: ignore[attr-defined,unused-ignore]


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    def _session() -> int:
        session = wintypes.DWORD()
        kernel = ctypes.WinDLL("kernel32")
        return session.value if kernel.ProcessIdToSessionId(kernel.GetCurrentProcessId(), ctypes.byref(session)) else -1

    @ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
    def _handler(event: int) -> bool:
        return take(event, _session(), _ask, time.sleep)

    def end_in_order() -> None:
        """Let the end of the console ask this process to end as Ctrl-Break does, and give it the time for that."""
        # Windows calls the newest handler first, and this one before Python's. A second time would only repeat it.
        kernel = ctypes.WinDLL("kernel32")
        kernel.SetConsoleCtrlHandler(_handler, False)
        kernel.SetConsoleCtrlHandler(_handler, True)

else:

    def end_in_order() -> None:
        """Do nothing: there is no console."""
