"""Names of files that are made of what a tape holds. Pure.

A tape may come from anybody, and its export must not leave the folder: `..`, a drive of Windows or a device such as CON
may stand where a period or a type is expected. A name is safe on Windows and Unix, wherever the export is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

# Not a dot: Windows drops one at the end, and takes what is before the first for the name of a device.
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
# Windows takes these for devices, whatever follows a dot.
_DEVICES = re.compile(r"(?:CON|PRN|AUX|NUL|CLOCK\$|CONIN\$|CONOUT\$|COM[0-9]|LPT[0-9])", re.IGNORECASE)
_LONGEST = 80
_HASH = 8


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """Return a file's name, without a suffix, for each text: its own if it is safe, else what is left and a hash.

    No two are equal where case does not matter, as on Windows and macOS.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for text in texts:
        name = _safe(text)
        if name.lower() in taken:
            name = _hashed(name, text)
        taken.add(name.lower())
        names[text] = name
    return names


def _safe(text: str) -> str:
    name = _UNSAFE.sub("_", text)
    if name == text and name and len(name) <= _LONGEST and not _DEVICES.fullmatch(name):
        return name
    return _hashed(name, text)


def _hashed(name: str, text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{name[: _LONGEST - _HASH - 1]}-{digest[:_HASH]}".removeprefix("-")
