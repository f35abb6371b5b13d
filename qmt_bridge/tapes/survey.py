"""`qmt-bridge tape info` and `verify`: what a tape holds, and whether all of it is there. Runs in the main thread."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from qmt_bridge.errors import ConfigError, WireError
from qmt_bridge.tapes.tally import MAX_TOPICS, Gap, Tally
from qmt_bridge.tapes.tape import Damage, TapeReader
from qmt_bridge.wire.frames import encode
from qmt_bridge.wire.shanghai import SHANGHAI


class Survey(NamedTuple):
    """A tape that was read to its end."""

    path: Path
    size: int
    tally: Tally
    # Of `damage_count` damages the first ones, and the bytes of all.
    damages: list[Damage]
    damage_count: int
    damaged_bytes: int
    torn: int

    @property
    def faults(self) -> list[str]:
        """Return one sentence for each thing that is missing; empty if nothing is."""
        faults = [f"byte {damage.offset}: {damage.size} bytes are damaged" for damage in self.damages]
        unlisted = self.damage_count - len(self.damages)
        if unlisted:
            faults.append(f"... and {unlisted} damages more")
        if self.torn:
            faults.append(f"byte {self.size - self.torn}: the last block is torn, {self.torn} bytes")
        faults += [_gap(gap) for gap in self.tally.gaps]
        untold = self.tally.gap_count - len(self.tally.gaps)
        if untold:
            faults.append(f"... and {untold} gaps more")
        return faults


def survey(path: Path, on_read: Callable[[int], None] | None = None) -> Survey:
    """Read a whole tape; raise `ConfigError` if it is none, or holds what no recorder writes.

    `on_read` is called with the bytes that are read so far.
    """
    reader = TapeReader(path)
    reader.on_read = on_read
    tally = Tally(MAX_TOPICS)
    try:
        for recorded in reader:
            tally.note(recorded)
    except WireError as exc:
        raise ConfigError("file", f"{path}: {exc}") from exc
    size = reader.end + reader.torn
    return Survey(path, size, tally, reader.damages, reader.damage_count, reader.damaged_bytes, reader.torn)


def title(survey: Survey) -> str:
    """Return how much a tape holds, in one line."""
    tally = survey.tally
    return f"{survey.size:,} bytes, {tally.frames:,} messages of {tally.topics:,} topics"


def to_rows(survey: Survey) -> list[tuple[str, str]]:
    """Return the lines of `info` below the title, each a label and what was found."""
    tally = survey.tally
    lines = []
    if tally.sources:
        invented = ", SIMULATED data" if tally.simulated else ""
        lines.append(("source", f"{printable(', '.join(tally.sources))}{invented}"))
    if tally.frames:
        lines += [("from", shanghai(tally.first_ns)), ("to", shanghai(tally.last_ns))]
    for session in tally.sessions:
        lines.append(("session", f"{shanghai(session.begin_ns)}  {printable(' '.join(session.topics))}"))
    if tally.session_count > len(tally.sessions):
        lines.append(("session", f"and {tally.session_count - len(tally.sessions):,} more"))
    for kind, count in sorted(tally.kinds.items()):
        held = f"{count.frames:>12,} messages {count.size:>15,} bytes {count.topics:>8,} topics"
        lines.append((printable(kind), held))
    lines.append(("gaps", f"{tally.gap_count:,}, {tally.missed:,} messages missing"))
    if survey.damage_count or survey.torn:
        lost = f"{survey.damaged_bytes:,} bytes in {survey.damage_count:,} places"
        lines.append(("damaged", f"{lost}, {survey.torn:,} torn at the end"))
    return lines


def to_object(survey: Survey) -> bytes:
    """Return the same as JSON; times are ns since 1970."""
    tally = survey.tally
    return encode(
        {
            "file": str(survey.path),
            "bytes": survey.size,
            "messages": tally.frames,
            "topics": tally.topics,
            "sources": tally.sources,
            "simulated": tally.simulated,
            "first_ns": tally.first_ns,
            "last_ns": tally.last_ns,
            "sessions": [
                {"begin_ns": session.begin_ns, "topics": session.topics, "version": session.version}
                for session in tally.sessions
            ],
            "kinds": {
                kind: {"messages": count.frames, "bytes": count.size, "topics": count.topics}
                for kind, count in sorted(tally.kinds.items())
            },
            "gaps": tally.gap_count,
            "missing": tally.missed,
            "damages": [damage._asdict() for damage in survey.damages],
            "torn": survey.torn,
        }
    )


def printable(text: str) -> str:
    """Return a text of a tape, which may come from anybody, without what a terminal would take for a command."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def shanghai(at_ns: int) -> str:
    """Return a moment (ns since 1970) as the exchange's clock shows it."""
    return f"{datetime.fromtimestamp(at_ns / 1e9, SHANGHAI):%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _gap(gap: Gap) -> str:
    where = f"{shanghai(gap.arrival_ns)} {printable(gap.topic)}"
    if gap.missed:
        return f"{where}: seq {gap.after} is followed by {gap.seq}, {gap.missed} missing"
    return f"{where}: seq {gap.after} is followed by {gap.seq}, goes back"
