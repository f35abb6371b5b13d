"""The request to end: Ctrl-C, SIGTERM (Windows: Ctrl-Break, and `console`) and the end of standard input. Main thread.

A signal handler runs in the main thread, between any two instructions of whatever that thread is doing. It may
therefore take no lock: the thread may hold that very lock, and would wait for itself for ever. `threading.Event.set`
takes the lock of the `Event.wait` that it interrupts. So the handlers here set a plain flag, and a thread that waits
looks at it again and again. `wait` never sleeps longer than `STEP`: on Windows a longer sleep of the main thread would
hold up the handler, and elsewhere a signal may come just before the sleep begins.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

# Seconds. Twenty looks a second at a flag cost nothing, and the delay cannot be felt.
STEP = 0.05
# Seconds that Windows gets to end this process after it has asked to be ended.
_LEAVE_SECONDS = 5.0
# Seconds in which the main thread takes an exception: longer than any call of ours into a library, which ends first.
_AGAIN_SECONDS = 1.0

_NAMES = ("SIGINT", "SIGTERM", "SIGBREAK")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stop:
    """Whether this process shall end. The first signal asks for it, a second one ends the process at once."""

    def __init__(self) -> None:
        self._asked = False
        self._signalled = False
        # Called by the second signal before the process ends: no lock, no wait, no exception.
        self.last_act: Callable[[], None] | None = None

    def set(self) -> None:
        """Ask for the end. Any thread."""
        self._asked = True

    def is_set(self) -> bool:
        """Return whether the end was asked for. Any thread."""
        return self._asked

    def wait(self, timeout: float) -> bool:
        """Wait for at most `timeout` seconds; return whether the end was asked for. Any thread."""
        until = time.monotonic() + timeout
        while not self._asked:
            left = until - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, STEP))
        return self._asked

    def on_signals(self) -> None:
        """Let signals ask for the end from now on."""
        for number in _SIGNALS:
            signal.signal(number, self._take)

    def on_end_of_input(self) -> None:
        """Let the end of standard input ask for the end: how a supervisor stops its children, on Windows too."""

        # Raw reads: a lock of sys.stdin that a daemon thread holds would be fatal at the interpreter's end.
        def watch() -> None:
            try:
                while os.read(0, 4096):
                    pass
            finally:
                self._asked = True

        threading.Thread(target=watch, name="stdin-watch", daemon=True).start()

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._signalled:
            if self.last_act is not None:
                self.last_act()
            # The journal is a database and a tape is written block by block: both stay valid whenever the process ends.
            os._exit(128 + number)
        self._signalled = True
        self._asked = True


def leave(code: int) -> NoReturn:
    """End this process now, whatever its threads do: an exit of Python's, or of Windows', may wait for native ones."""
    for stream in (sys.stdout, sys.stderr):
        # What the log has written is in these streams; it keeps nothing back itself.
        with suppress(OSError, ValueError):
            stream.flush()
    if sys.platform == "win32":
        import _winapi

        # os._exit would call into each DLL, where a lock may be held. os.kill takes 0 and 1 for Ctrl-C and Ctrl-Break,
        # which a part of `qmt-bridge up` would send to itself and to its children.
        _winapi.TerminateProcess(_winapi.GetCurrentProcess(), code)
        # It may return before the process is gone.
        time.sleep(_LEAVE_SECONDS)
    os._exit(code)


@contextmanager
def interruptible() -> Iterator[None]:
    """End a command that a signal interrupts with 130 (Ctrl-C) or 143 (SIGTERM); a second signal ends it at once.

    The first one raises KeyboardInterrupt, so that what is open is closed. Afterwards signals are as before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    ended = threading.Event()

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        came.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    watch = threading.Thread(target=_raise_again, args=(came, ended), name="interrupt-watch", daemon=True)
    watch.start()
    try:
        for number in _SIGNALS:
            signal.signal(number, interrupt)
        yield
    except KeyboardInterrupt:
        ended.set()
        sys.exit(128 + (came[0] if came else signal.SIGINT))
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_again(came: list[int], ended: threading.Event) -> None:
    """Raise KeyboardInterrupt in the main thread if the handler has raised it where exceptions are dropped.

    Python drops it in `__del__` and in callbacks of the garbage collector. So does a library that Cython has built for
    the stable ABI, such as pyzmq on CPython 3.12 and later, while it makes an entry of a traceback: of 720 interrupts
    that came while a socket had nothing to read, 20 were lost.
    """
    main = threading.main_thread().ident
    assert main is not None
    while not ended.wait(_AGAIN_SECONDS):
        if came and not _is_interrupted(sys._current_exceptions().get(main)):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))


def _is_interrupted(handled: Any) -> bool:
    """Return whether a thread that handles this exception is at the work that ends an interrupted command."""
    # CPython 3.11 gives what sys.exc_info does.
    exception = handled[1] if isinstance(handled, tuple) else handled
    while exception is not None and not isinstance(exception, KeyboardInterrupt):
        exception = exception.__context__
    return exception is not None


@contextmanager
def shielded() -> Iterator[None]:
    """Start processes that ignore Ctrl-C until they call `unshield`: during an import it would print a traceback."""
    if sys.platform == "win32":
        # Windows has no mask: there the traceback is printed.
        yield
        return
    # It unblocks SIGINT when it starts, so it has to be there before.
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        # A signal that came meanwhile is handled now.
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unshield() -> None:
    """Take Ctrl-C again in a process that was started within `shielded`; one that came before is handled now."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
