"""Whether the tests run under Wine, and a mark for a test that Wine, and not Windows, keeps from working."""

from __future__ import annotations

import ctypes
import sys

import pytest


def _runs_here() -> bool:
    # Wine's own way to tell: the function is in no ntdll of Windows.
    return sys.platform == "win32" and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


WINE = _runs_here()


def not_under_wine(reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test under Wine; `reason` says what Wine lacks."""
    return pytest.mark.skipif(WINE, reason=f"Wine: {reason}")
