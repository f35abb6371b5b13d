"""The sources of other packages: found by the entry points of the group `qmt_bridge.sources`, made and checked.

`python -m feeder.sources.installed NAME` makes one and prints what came of it, for `qmt-bridge doctor`: a process of
its own, because what a package does when it is imported may hang, or end the process.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import msgspec

from feeder.source import PROTOCOL, Source
from qmt_bridge.config import SOURCE_GROUP, SOURCES, Config, load_config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.topics import Kind

logger = logging.getLogger(__name__)

# Characters of an error of a package that are told: the first line of it, and no more.
_MOST_TOLD = 300
_METHODS = (
    *("start", "subscribe", "unsubscribe", "download", "history"),
    *("upstream", "hung", "health", "capabilities", "close"),
)


class Offer(NamedTuple):
    """A source of an installed package: its name, and the package with its version."""

    name: str
    package: str
    point: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.package})"


def offers() -> list[Offer]:
    """Return the sources of all installed packages by name; imports none of them. Raise `ConfigError`."""
    try:
        found = [Offer(point.name, _package(point), point) for point in entry_points(group=SOURCE_GROUP)]
    except Exception as exc:
        # A damaged file of one package is enough.
        raise ConfigError("source", f"the installed packages cannot be listed: {_told(exc)}") from exc
    return sorted(found, key=lambda offer: offer[:2])


def find(name: str) -> Offer:
    """Return the source `name` of the one package that has it; raise `ConfigError` if none or several have."""
    found = offers()
    named = [offer for offer in found if offer.name == name]
    if len(named) == 1:
        return named[0]
    if named:
        packages = ", ".join(offer.package for offer in named)
        raise ConfigError("source", f"several packages have a source {name}: {packages}; uninstall all but one")
    there = ", ".join((*SOURCES, *(str(offer) for offer in found if offer.name not in SOURCES)))
    raise ConfigError("source", f"there is no source {name}; there are {there}")


def make(name: str, config: Config) -> Source:
    """Return the source `name` of another package; raise `ConfigError` with the package's name for what is wrong."""
    offer = find(name)
    # Before it: an import that hangs is then the last line of the log.
    logger.info("source %s is imported", offer)
    try:
        factory = offer.point.load()
    except BaseException as exc:
        # A KeyboardInterrupt too: that of a package cannot be told from the user's, and either ends the command.
        raise ConfigError("source", f"{offer} cannot be imported: {_told(exc)}") from exc
    if not callable(factory):
        raise ConfigError("source", f"{offer} is no source: {offer.point.value} cannot be called")
    try:
        source = factory(config)
        lack = lacks(source, name)
    except ConfigError:
        # Of its settings.
        raise
    except BaseException as exc:
        raise ConfigError("source", f"{offer} cannot be made: {_told(exc)}") from exc
    if lack:
        raise ConfigError("source", f"{offer} is no source: {lack}")
    made: Source = source
    return made


def lacks(source: Any, name: str) -> str:
    """Return what keeps an object from being the source `name` of this version of the protocol; empty if nothing."""
    protocol = getattr(source, "protocol", None)
    if protocol != PROTOCOL:
        return f"its attribute protocol is {protocol!r}, and this feeder takes {PROTOCOL}"
    if getattr(source, "name", None) != name:
        return f"its attribute name is {getattr(source, 'name', None)!r}, and the entry point's is {name!r}"
    for attribute in ("simulated", "lossless"):
        if not isinstance(getattr(source, attribute, None), bool):
            return f"its attribute {attribute} is neither True nor False"
    kinds = getattr(source, "kinds", None)
    if not isinstance(kinds, Collection) or isinstance(kinds, str) or not set(kinds) <= set(Kind) - {Kind.STATUS}:
        return "its attribute kinds is no set of kinds of topics"
    missing = [method for method in _METHODS if not callable(getattr(source, method, None))]
    return f"it has no method {', '.join(missing)}" if missing else ""


def _package(point: EntryPoint) -> str:
    # A damaged package may have neither.
    names = {} if point.dist is None else point.dist.metadata.json
    return f"{names.get('name', 'an unknown package')} {names.get('version', '')}".rstrip()


def _told(exc: BaseException) -> str:
    """Return an error of a package in one line."""
    text = (str(exc).splitlines() or [""])[0]
    return f"{type(exc).__name__}{': ' if text else ''}{text}"[:_MOST_TOLD]


def main() -> None:
    """Make the source that the command line names, with the settings of the environment; print JSON."""
    out = os.dup(1)
    # What a package prints is no answer.
    os.dup2(2, 1)
    answer = {"error": "", "package": ""}
    try:
        answer["package"] = find(sys.argv[1]).package
        make(sys.argv[1], load_config(None))
    except ConfigError as exc:
        answer["error"] = str(exc) if exc.setting != "source" else exc.reason
    os.write(out, msgspec.json.encode(answer))
    # Without waiting for threads that a package has started.
    os._exit(0)


if __name__ == "__main__":
    main()
