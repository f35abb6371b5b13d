"""What the units of systemd allow the parts."""

from __future__ import annotations

import functools
import re

from tests.support.paths import ROOT
from tests.support.programs import check, needs

ADDRESS_FAMILIES = "RestrictAddressFamilies="


def unit(part: str) -> str:
    """Return the text of the unit of a part."""
    return (ROOT / "deploy" / "systemd" / f"qmt-bridge-{part}.service").read_text(encoding="utf-8")


def allowed_families(part: str) -> set[str]:
    """Return the address families of which a part may open sockets ("AF_INET")."""
    (families,) = re.findall(rf"^{ADDRESS_FAMILIES}(.*)$", unit(part), re.MULTILINE)
    return set(families.split())


def allowed_calls(part: str) -> set[str]:
    """Return the system calls that a part may make."""
    allowed: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit(part), re.MULTILINE):
        allowed = allowed - system_calls(line[1:]) if line.startswith("~") else allowed | system_calls(line)
    return allowed


@functools.cache
def system_calls(names: str) -> frozenset[str]:
    """Return the system calls of a list of names and sets, as systemd knows the sets."""
    found: set[str] = set()
    for name in names.split():
        if not name.startswith("@"):
            found.add(name)
            continue
        listed = check([needs("systemd-analyze"), "syscall-filter", "--no-pager", name]).splitlines()[1:]
        found |= system_calls(" ".join(line.strip() for line in listed if not line.strip().startswith("#")))
    return frozenset(found)
