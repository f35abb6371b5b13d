"""The one place that imports xtquant: check whether that is possible, and do it without side effects. Any thread.

Importing `xtquant` asks the package index for a newer version (10 s where there is no internet) and prints; importing
`xtquant.xtdata` starts native threads. Nothing else in the feeder may import them first.
"""

from __future__ import annotations

import faulthandler
import importlib
import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from qmt_bridge.errors import ConfigError

# The wheel can be installed everywhere, but its native modules exist only for some systems and Python versions. Those
# of the SDK for Linux have market data alone.
_MARKET_DATA = "xtquant.datacenter"
_TRADING = "xtquant.xtpythonclient"
_ABSENT = object()
# The modules with which xtquant looks for a newer version of itself, and the function that it imports or calls.
_ASKING = {"requests": "get", "pkg_resources": "get_distribution"}


def importable() -> bool:
    """Return whether this interpreter can import xtquant for market data; nothing is imported."""
    return _has_native(_MARKET_DATA)


def has_trading() -> bool:
    """Return whether this interpreter can import xtquant for trade events; nothing is imported."""
    return _has_native(_TRADING)


def version() -> str | None:
    """Return the version of the xtquant that would be imported, such as "250807.1.2"; empty if it does not say it.

    None stands for no xtquant at all. The folder that a broker or the vendor hands out has no metadata of a package.
    Its ``__version__`` is less exact, and in some versions only the word xtquant.
    """
    spec = _spec()
    if spec is None or spec.origin is None:
        return None
    try:
        package = importlib.metadata.distribution("xtquant")
        if os.path.samefile(str(package.locate_file("xtquant/__init__.py")), spec.origin):
            return package.version
    except (importlib.metadata.PackageNotFoundError, OSError):
        pass
    try:
        text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    # The oldest one spells the name "__verison__".
    found = re.search(r"""^__ver\w+__\s*=\s*["'](?:xtquant)?_?([^"']*)["']""", text, re.MULTILINE)
    return found[1] if found else ""


def load() -> ModuleType:
    """Import and return `xtquant.xtdata`, without its HTTP request and its banner; raise ImportError if that fails.

    From now on a crash of native code writes to standard error which call of which thread it was in.
    """
    if not faulthandler.is_enabled():
        # By number: the stream of Python's may be another one, or none.
        faulthandler.enable(2)
    with _without_request():
        xtdata = importlib.import_module("xtquant.xtdata")
    xtdata.enable_hello = False  # type: ignore[attr-defined]
    return xtdata


@contextmanager
def _without_request() -> Iterator[None]:
    """Replace the two modules with which xtquant/__init__.py asks the package index.

    Modules that fail when they are used, because one version imports them without being ready for their absence.
    """
    before = {name: sys.modules.get(name, _ABSENT) for name in _ASKING}
    sys.modules.update({name: ModuleType(name) for name in _ASKING})
    for name, function in _ASKING.items():
        setattr(sys.modules[name], function, _refuse)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is _ABSENT:
                del sys.modules[name]
            else:
                sys.modules[name] = module  # type: ignore[assignment]


def _refuse(*_: object, **__: object) -> None:
    raise OSError("xtquant does not ask the package index here")


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


def _spec() -> ModuleSpec | None:
    # find_spec imports only parent packages, and a top-level name has none.
    return find_spec("xtquant")


def _has_native(name: str) -> bool:
    spec = _spec()
    if spec is None or spec.submodule_search_locations is None:
        return False
    return sys.modules.get(name) is not None or PathFinder.find_spec(name, spec.submodule_search_locations) is not None
