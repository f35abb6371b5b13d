"""The thread of one target: what waits for it, retries with longer and longer pauses, and what is counted.

A target that hangs holds up its own messages alone. What waits is bounded: the oldest goes first, since what is newest
tells how it is now.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets.target import Outcome

logger = logging.getLogger(__name__)

# Messages that wait for one target, some KiB each; and those that go as one.
MOST_WAITING = 200
MOST_JOINED = 10
# Seconds between two attempts: doubled after each, from the first to the last of these.
BACKOFF = (1.0, 60.0)
# The same while the process ends.
LAST_PAUSE = 0.5
# Seconds after which a message is given up: what it tells is old by then, and repeated if it still holds.
GIVE_UP = 3600.0

Deliver = Callable[[Sequence[Notice]], tuple[Outcome, str]]


class Counts(NamedTuple):
    """Messages of one target since the start: taken by it, given up or refused by it, and without room here.

    `waiting` are those that wait now, `failing` is whether it did not take the last attempt.
    """

    sent: int = 0
    failed: int = 0
    dropped: int = 0
    waiting: int = 0
    failing: bool = False


class Sender:
    """Sends to one target, in order, on a thread of its own. Any thread may call its methods."""

    def __init__(self, name: str, deliver: Deliver, *, joins: bool, pace: float = 0.0) -> None:
        """Send with `deliver`, several messages at once if it `joins`, and not more often than every `pace` seconds."""
        self.name = name
        self._deliver = deliver
        self._joins = joins
        self._pace = pace
        # With the time at which it was put there (time.monotonic).
        self._waiting: deque[tuple[float, Notice]] = deque()
        self._changed = threading.Condition()
        self._sent = self._failed = self._dropped = 0
        # Whether the last attempts failed; that is logged once.
        self._failing = False
        self._ending_at: float | None = None
        # A daemon: the end of the process does not wait for a target that hangs.
        self._thread = threading.Thread(target=self._run, name=f"alerts-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, notice: Notice) -> None:
        """Send a message as soon as those before it are sent."""
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
                if self._dropped == 1:
                    logger.error("%s: more than %d alerts wait; the oldest are dropped", self.name, MOST_WAITING)
            self._waiting.append((time.monotonic(), notice))
            self._changed.notify()

    def counts(self) -> Counts:
        """Return what was counted since the start."""
        with self._changed:
            return Counts(self._sent, self._failed, self._dropped, len(self._waiting), self._failing)

    def close(self, deadline: float) -> None:
        """Send what waits until `deadline` (time.monotonic), then end."""
        with self._changed:
            self._ending_at = deadline
            self._changed.notify()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        pause = BACKOFF[0]
        while batch := self._next():
            outcome, said = self._attempt([notice for _, notice in batch])
            given_up = outcome == "again" and time.monotonic() - batch[0][0] >= GIVE_UP
            self._tell(outcome, said)
            if outcome == "again" and not given_up:
                self._sleep(pause)
                pause = min(2 * pause, BACKOFF[1])
                continue
            pause = BACKOFF[0]
            self._remove(batch[:1] if given_up else batch, outcome)
            if self._pace:
                self._sleep(self._pace)

    def _attempt(self, notices: Sequence[Notice]) -> tuple[Outcome, str]:
        try:
            return self._deliver(notices)
        except Exception as exc:
            # A bug of ours in one message must not end the thread. The text may hold what was sent.
            logger.error("%s: an alert cannot be sent: %s", self.name, type(exc).__name__)
            return "refused", type(exc).__name__

    def _next(self) -> list[tuple[float, Notice]]:
        """Wait for messages; return those to send now, none at the end."""
        with self._changed:
            while not self._waiting:
                if self._ending_at is not None:
                    return []
                self._changed.wait()
            if self._ending_at is not None and time.monotonic() >= self._ending_at:
                return []
            return [each for each, _ in zip(self._waiting, range(MOST_JOINED if self._joins else 1), strict=False)]

    def _remove(self, batch: Sequence[tuple[float, Notice]], outcome: Outcome) -> None:
        with self._changed:
            if outcome == "sent":
                self._sent += len(batch)
            else:
                self._failed += len(batch)
            # The oldest may have been dropped meanwhile.
            gone = {id(each) for each in batch}
            self._waiting = deque(each for each in self._waiting if id(each) not in gone)

    def _sleep(self, seconds: float) -> None:
        """Wait; at the end of the process for a moment at most."""
        until = time.monotonic() + seconds
        is_cut = False
        with self._changed:
            while (left := until - time.monotonic()) > 0:
                if self._ending_at is not None and not is_cut:
                    is_cut = True
                    until = min(until, self._ending_at, time.monotonic() + LAST_PAUSE)
                else:
                    self._changed.wait(left)

    def _tell(self, outcome: Outcome, said: str) -> None:
        if outcome == "sent":
            if self._failing:
                logger.warning("%s takes alerts again", self.name)
            self._failing = False
        elif outcome == "refused":
            logger.error("%s refuses an alert: %s", self.name, said)
        elif not self._failing:
            self._failing = True
            logger.error("%s does not take alerts: %s; it is tried again", self.name, said)
