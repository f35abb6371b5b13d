"""One thing that can go wrong, from its begin to its end: when an alert, a repetition and a recovery are due.

Pure: time is an argument, in seconds of a clock that does not go back.

What is bad for `after` seconds opens an incident, which is told once. What is well for `settle` seconds closes it,
which is told once if the alert was. While nothing is known neither of them counts. In quiet hours nothing is told: what
is still open is told after them, and what is over is not told.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# well: it works. bad: it does not. unknown: it cannot be judged now, or need not work now.
Verdict = Literal["well", "bad", "unknown"]
News = Literal["alert", "repeat", "recovery"]

# A longer time between two looks is that of a machine that slept: nothing was seen meanwhile.
JUMP = 15.0


class Saved(NamedTuple):
    """What of an incident is kept over a restart: since when it is bad, and when it was last told (None: not yet)."""

    began: float
    told: float | None


class Incident:
    """One thing that is watched."""

    def __init__(self, after: float, settle: float, repeat: float, saved: Saved | None = None) -> None:
        """Watch anew, or go on with an incident that is open; with `repeat` 0 nothing is repeated."""
        self._after = after
        self._settle = settle
        self._repeat = repeat
        self.is_open = saved is not None
        # Since when it is bad, also before the incident is open; None while it is not.
        self.began: float | None = None if saved is None else saved.began
        # When it was last told; None if it was not.
        self.told: float | None = None if saved is None else saved.told
        # Since when it is well again while the incident is open.
        self._well_since: float | None = None
        self._looked: float | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether nothing would be forgotten with this object."""
        return not self.is_open and self.began is None

    def look(self, now: float, verdict: Verdict, *, quiet: bool = False) -> News | None:
        """Take what is seen at `now`; return what is to be told."""
        if self._looked is not None and now - self._looked > JUMP:
            self._well_since = None
            if not self.is_open:
                self.began = None
        self._looked = now
        if self.is_open:
            return self._go_on(now, verdict, quiet)
        if verdict != "bad":
            self.began = None
            return None
        if self.began is None:
            self.began = now
        if now - self.began < self._after:
            return None
        self.is_open = True
        return self._go_on(now, verdict, quiet)

    def _go_on(self, now: float, verdict: Verdict, quiet: bool) -> News | None:
        if verdict != "well":
            self._well_since = None
        elif self._well_since is None:
            self._well_since = now
        if self._well_since is not None:
            return self._end(quiet) if now - self._well_since >= self._settle else None
        if quiet or verdict == "unknown":
            return None
        if self.told is None:
            self.told = now
            return "alert"
        if self._repeat and now - self.told >= self._repeat:
            self.told = now
            return "repeat"
        return None

    def _end(self, quiet: bool) -> News | None:
        if quiet and self.told is not None:
            # Told after the quiet hours. If it is bad again before, it is the same incident.
            return None
        told, self.is_open, self.began, self.told, self._well_since = self.told, False, None, None, None
        return None if told is None else "recovery"
