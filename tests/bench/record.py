"""What has been measured, load by load, in a file: a run can measure some loads, or continue one that has ended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.observing import Figures


class Part(msgspec.Struct):
    """One load: when and on what it was measured, and the figures of each round by server."""

    date: str
    commit: str
    machine: dict[str, Any]
    versions: dict[str, str]
    # Length of a measurement; of load 11 that of the whole.
    seconds: float
    soak: float
    # Servers that are not installed, and how to install them.
    missing: dict[str, str]
    failures: list[str]
    rounds: dict[str, list[Figures]]
    # How long it took in all.
    took: float = 0.0

    def continues(self, other: Part) -> bool:
        """Return whether further rounds of `self` may be added to those of `other`: the same code and conditions."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("commit", "machine", "versions", "seconds", "soak")
        )

    def others(self) -> list[float]:
        """Return the share of a core that other programs had during each measurement."""
        shares = (figures.get("others") for rounds in self.rounds.values() for figures in rounds)
        return [share for share in shares if share is not None]

    def count(self) -> int:
        """Return of how many rounds the figures are."""
        return max(map(len, self.rounds.values()), default=0)


class Record:
    """The parts by the number of their load; kept in a file, if there is a path."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.parts: dict[int, Part] = {}
        if path is not None and path.exists():
            self.parts = msgspec.json.decode(path.read_bytes(), type=dict[int, Part])

    def begin(self, number: int, part: Part, resume: bool) -> Part:
        """Return the part to measure: `part`, or with `resume` that of the file, if its rounds may be added to."""
        before = self.parts.get(number)
        if resume and before is not None and part.continues(before):
            # What has failed is tried again.
            before.failures.clear()
            before.missing = part.missing
            return before
        return part

    def keep(self, number: int, part: Part) -> None:
        """Keep a part, also one that is not complete, in the file."""
        self.parts[number] = part
        if self._path is None:
            return
        ordered = {str(key): self.parts[key] for key in sorted(self.parts)}
        text = msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(ordered)), indent=1)
        fresh = self._path.with_suffix(".new")
        fresh.write_bytes(text + b"\n")
        # At once, so that a run that is killed leaves the file whole.
        os.replace(fresh, self._path)

    def rounds(self) -> Iterator[tuple[tuple[int, str], list[Figures]]]:
        """Yield load and server, and the figures of each round."""
        for number in sorted(self.parts):
            for name, figures in self.parts[number].rounds.items():
                yield (number, name), figures

    @property
    def missing(self) -> Mapping[str, str]:
        """Return the servers that were not installed, and how to install them."""
        return {name: how for part in self.parts.values() for name, how in part.missing.items()}

    @property
    def failures(self) -> list[str]:
        """Return what has failed."""
        return [failure for number in sorted(self.parts) for failure in self.parts[number].failures]
