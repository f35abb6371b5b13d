"""The text of an operating system error without its number."""

from __future__ import annotations


def error_text(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__
