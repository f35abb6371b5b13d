"""The versions of xtquant that the package index has, with the hashes of their wheels, and where they are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import platformdirs

LOCK = Path(__file__).with_name("wheels.lock")
# The files of a wheel that are kept: what is Python, what it reads, and the name and version of the package.
KEPT = (".py", ".ini", ".json", "/METADATA")
CACHE = Path(os.environ.get("QMT_BRIDGE_SDKS") or platformdirs.user_cache_path("qmt-bridge") / "sdks")


class Wheel(NamedTuple):
    """One version; `folder` has its Python layer once `make sdks` has run, under a name with the hash of the wheel."""

    version: str
    hash: str

    @property
    def requirement(self) -> str:
        return f"xtquant=={self.version} --hash=sha256:{self.hash}\n"

    @property
    def folder(self) -> Path:
        return CACHE / f"{self.version}-{self.hash[:12]}"


WHEELS = tuple(
    Wheel(*found)
    for found in re.findall(
        r"^xtquant==(\S+) --hash=sha256:([0-9a-f]{64})$", LOCK.read_text(encoding="utf-8"), re.MULTILINE
    )
)
