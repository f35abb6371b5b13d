"""The one place that imports xtquant: check whether that is possible, and do it without side effects. Any thread.

Importing `xtquant` asks the package index for a newer version (10 s where there is no internet) and prints; importing
`xtquant.xtdata` starts native threads. Nothing else in the feeder may import them.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import BinaryIO

from qmt_bridge.errors import ConfigError

# The wheel can be installed everywhere, but these two modules exist only for Windows and some Python versions.
_NATIVE = ("xtquant.datacenter", "xtquant.xtpythonclient")
_ABSENT = object()


def importable() -> bool:
    """Return whether this interpreter can import xtquant with its native modules; nothing is imported."""
    # find_spec imports only parent packages, and a top-level name has none.
    spec = find_spec("xtquant")
    if spec is None or spec.submodule_search_locations is None:
        return False
    locations = list(spec.submodule_search_locations)
    return all(_native_importable(name, locations) for name in _NATIVE)


def load() -> ModuleType:
    """Import and return `xtquant.xtdata`, without its HTTP request and its banner; raise ImportError if that fails.

    From now on a crash of native code writes to standard error which call of which thread it was in.
    """
    if not faulthandler.is_enabled():
        # By number: the stream of Python's may be another one, or none.
        faulthandler.enable(2)
    # xtquant/__init__.py makes the HTTP request with `requests`; None in sys.modules makes its import fail.
    requests = sys.modules.get("requests", _ABSENT)
    sys.modules["requests"] = None  # type: ignore[assignment]
    try:
        xtdata = importlib.import_module("xtquant.xtdata")
    finally:
        if requests is _ABSENT:
            del sys.modules["requests"]
        else:
            sys.modules["requests"] = requests  # type: ignore[assignment]
    xtdata.enable_hello = False  # type: ignore[attr-defined]
    return xtdata


def take_stdout() -> BinaryIO:
    """Return this process's standard output for our own use, and redirect what xtquant prints to standard error.

    Native code also writes to standard output, so the file descriptor itself is replaced.
    """
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return own


def parse_address(address: str, setting: str = "xt_addr") -> tuple[str, int]:
    """Return host and port of the address in `setting`; raise `ConfigError` if one of them is missing or wrong."""
    host, _, port = address.rpartition(":")
    # xtconn.py splits at every ":", so an IPv6 address cannot be given.
    if not host or ":" in host or not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(setting, f"expected 'host:port', got {address!r}")
    return host, int(port)


def _native_importable(name: str, locations: Sequence[str]) -> bool:
    return sys.modules.get(name) is not None or PathFinder.find_spec(name, locations) is not None
