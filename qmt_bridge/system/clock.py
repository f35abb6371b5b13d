"""Clocks that step by microseconds at most, on every system.

CPython before 3.13 reads clocks of Windows that step by 16 ms: stamps of a burst would be equal, and delays 0 or 16 ms.
"""

from __future__ import annotations

import sys
import time

# Seconds between two steps, at most.
RESOLUTION = 1e-6

if sys.platform == "win32" and sys.version_info < (3, 13):
    import ctypes

    # From 1601, where Windows begins to count, to 1970, in its unit of 100 ns.
    _SINCE_1601 = 116_444_736_000_000_000
    _precise = ctypes.WinDLL("kernel32").GetSystemTimePreciseAsFileTime
    _precise.argtypes = (ctypes.POINTER(ctypes.c_uint64),)
    _precise.restype = None

    def time_ns() -> int:
        """Return the nanoseconds since 1970, as `time.time_ns` does."""
        found = ctypes.c_uint64()
        _precise(found)
        return (found.value - _SINCE_1601) * 100

    # The same clock as QueryPerformanceCounter: it never goes back, and counts seconds.
    monotonic = time.perf_counter
else:
    time_ns = time.time_ns
    monotonic = time.monotonic
