"""What a command does before it imports anything else.

Importing the rest takes a quarter of a second. Ctrl-C in that time would print a traceback, and with `python -m` the
current folder comes first on the path: a `feeder.py` or `zmq.py` of the user would be run instead of ours.
"""

from __future__ import annotations

import os
import sys

# The built-in half of `signal`, which itself takes milliseconds to load.
from _signal import SIG_DFL, SIGINT, signal  # type: ignore[import-not-found]


def prepare() -> None:
    """Let Ctrl-C end the process without a traceback until a command takes it; keep new files from other users.

    And take every text to print, and the current folder off the path.
    """
    signal(SIGINT, SIG_DFL)
    if sys.platform == "win32":
        import msvcrt

        # Programs that this one starts inherit it. Without it a crash of native code waits for a click on a message of
        # Windows, and no supervisor sees an end.
        msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)
    open_closed_streams()
    tolerate_any_text()
    # What a library writes, such as xtquant, is for the owner alone too, and so is the end of a local socket.
    os.umask(0o077)
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # `python -m` puts the folder there. A checkout that is not installed is found only there.
    try:
        current = os.getcwd()
    except OSError:
        # It was removed.
        current = ""
    if not sys.flags.safe_path and sys.path and sys.path[0] == current != ours:
        del sys.path[0]
    # multiprocessing starts workers with `python -c`, which puts the folder there too.
    os.environ["PYTHONSAFEPATH"] = "1"


def open_closed_streams() -> None:
    """Give a process that was started without standard streams (``>&-``, pythonw) empty ones.

    Python has None in their place, which prompts, and all that asks for a terminal, would fail at.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the process ends


def tolerate_any_text() -> None:
    """Let standard output and error take every text: what their encoding lacks comes as an escape such as ``\\u6210``.

    Windows redirects to the encoding of the system, which has no Chinese outside China, and no emoji in China; an error
    message that cannot be written would hide its own cause. Every command begins here, before it reads its arguments.
    """
    for stream in (sys.stdout, sys.stderr):
        # A program that embeds Python may have others.
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
