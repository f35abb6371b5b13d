"""What the exit code of a process says: in words, and whether another start may help. Pure."""

from __future__ import annotations

import sys

from qmt_bridge.process.child import TRY_AGAIN

# On Windows, exit codes from this one on are exceptions of native code (NTSTATUS).
_FIRST_EXCEPTION = 0xC0000000
_EXCEPTIONS = {
    0xC0000005: "access violation",
    0xC000001D: "illegal instruction",
    0xC00000FD: "stack overflow",
    0xC0000135: "a DLL is missing",
    0xC000013A: "ended by Ctrl-C, or with its console",
    0xC0000142: "a DLL cannot be initialised",
    0xC0000374: "damaged heap",
    0xC0000409: "ended by a check of its own",
    0xE06D7363: "exception of C++",
}
# With this one the C runtime of Windows ends a process whose native code calls abort(), as a failed assertion does. No
# command of ours ends with it.
_ABORT = 3


def describe(code: int) -> str:
    """Return ``exit code 1``, or for native code that has crashed on Windows its exception in words."""
    if code >= _FIRST_EXCEPTION:
        name = _EXCEPTIONS.get(code)
        return f"exit code 0x{code:08X}" + (f" ({name})" if name else "")
    if code == _ABORT and sys.platform == "win32":
        return "exit code 3 (abort of native code)"
    return f"exit code {code}"


def may_pass(code: int) -> bool:
    """Return whether a new start may end otherwise: the process says so, or a signal or a native crash ended it."""
    # A code below zero is the signal that ended the process. A terminal or a user may have sent it.
    return code == TRY_AGAIN or code < 0 or is_native_crash(code)


def is_native_crash(code: int) -> bool:
    """Return whether native code ended the process on Windows."""
    return code >= _FIRST_EXCEPTION or (code == _ABORT and sys.platform == "win32")
