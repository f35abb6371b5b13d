"""What clients may cost: requests, codes named in them, and bytes of answers. Pure; time is an argument.

A socket that has spent its own budget is refused. What all sockets of one address, or of one worker, spend together is
no fault of the one that asks: its request waits until there is budget again, and is refused only if it would wait long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

# What a code costs that is asked for from a moment of the past on.
STORED_CODE = 4
# Bytes of an answer that cost as much as a code.
ANSWER_BYTES = 128
# An ack names at most so many rejected codes; a number says how many more there are.
NAMED_REJECTIONS = 100
# Bytes of its own answers that may wait for a client before its next request is taken.
UNREAD_ANSWERS = 64 * 1024
# Refusals, in seconds of the allowed rate, after which a client is closed; each second forgives one of them.
ABUSE = 100
# Seconds between two frames that tell a client how many of its requests were refused.
TELL_REFUSED_EVERY = 1.0
# All sockets of an address may spend so many times what one may, and all of a worker.
OF_ADDRESS = 4
OF_WORKER = 5
# What may be spent at once, in the same unit: clients that all connect again name all their codes. Of one address these
# are twelve clients of 6,000 codes; within the longest wait thirteen more are served, and others connect again later.
BURST_OF_ADDRESS = 3
BURST_OF_WORKER = 20
# Seconds that a request may wait for the budget of its address or worker.
LONGEST_WAIT = 10.0
# Addresses whose budget is kept.
MAX_ADDRESSES = 10_000


class Bucket:
    """Allows `rate` a second, and `burst` at once."""

    __slots__ = ("_at", "_left", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left = burst
        self._at = now

    def left(self, now: float) -> float:
        """Return what may be spent at `now` (seconds); less than 0 if too much was charged."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate)
        self._at = now
        return self._left

    def take(self, now: float, cost: float = 1.0) -> bool:
        """Spend `cost` and return True, or return False. What costs more than a burst may be spent when it is full."""
        if self.left(now) < min(cost, self.burst):
            return False
        self._left -= cost
        return True

    def charge(self, now: float, cost: float) -> None:
        """Spend `cost` although it may not be there."""
        self.left(now)
        self._left -= cost

    def wait(self, now: float) -> float:
        """Return the seconds until what was charged is paid for."""
        return max(0.0, -self.left(now) / self.rate)


class Refusals:
    """The refused requests of one socket: told at most once in `TELL_REFUSED_EVERY`, and counted over a window."""

    __slots__ = ("_allowed", "_told_at", "_untold")

    def __init__(self, rate: float, now: float) -> None:
        # A bucket and not a row of refusals: a flood has a request that passes each time there is a token again.
        self._allowed = Bucket(rate, ABUSE * rate, now)
        self._told_at = -math.inf
        self._untold = 0

    def note(self, now: float) -> bool:
        """Count a refusal; return whether there were so many that the client has to go."""
        self._untold += 1
        return not self._allowed.take(now)

    def untold(self, now: float) -> int:
        """Return how many refusals to tell the client of now."""
        if not self._untold or now - self._told_at < TELL_REFUSED_EVERY:
            return 0
        count, self._untold = self._untold, 0
        self._told_at = now
        return count


class Purse:
    """What one socket may spend: requests, and codes named in them."""

    __slots__ = ("_codes", "_limits", "_refusals", "_requests")

    def __init__(self, requests: float, codes: float, topics: int, now: float) -> None:
        """Allow so many requests and codes a second, and to name all of `topics` several times at once."""
        self._limits = (codes, 4 * max(codes, topics))
        self._requests = Bucket(requests, 4 * requests, now)
        # None until needed: most sockets send one request in their lives.
        self._codes: Bucket | None = None
        self._refusals: Refusals | None = None

    def ask(self, now: float) -> bool:
        """Spend a request, or return False."""
        return self._requests.take(now)

    def give_back(self, now: float) -> None:
        """Take back what a request has cost."""
        self._requests.charge(now, -1.0)

    def name(self, now: float, codes: float) -> bool:
        """Spend codes, or return False."""
        if self._codes is None:
            self._codes = Bucket(*self._limits, now)
        return self._codes.take(now, codes)

    def charge(self, now: float, answered: int) -> None:
        """Spend what an answer of so many bytes costs."""
        if self._codes is not None:
            self._codes.charge(now, answered / ANSWER_BYTES)

    def abused(self, now: float) -> bool:
        """Note a refusal; return whether there were so many that the client has to go."""
        if self._refusals is None:
            self._refusals = Refusals(self._requests.rate, now)
        return self._refusals.note(now)

    def untold(self, now: float) -> int:
        """Return how many refused requests to tell the client of now."""
        return 0 if self._refusals is None else self._refusals.untold(now)


class Budget:
    """What the sockets of one worker, and those of each address, may spend together."""

    __slots__ = ("_addresses", "_codes", "_topics", "_worker")

    def __init__(self, codes: float, topics: int, now: float) -> None:
        self._codes = codes
        self._topics = topics
        burst = 4 * max(codes, topics)
        self._worker = Bucket(OF_WORKER * codes, BURST_OF_WORKER * burst, now)
        self._addresses: dict[str, Bucket] = {}

    def spend(self, address: str, now: float, cost: float, key: str | None = None) -> float | None:
        """Spend `cost`; return the seconds to wait first, or None if it is refused.

        `key` stands for the key that the socket has shown: from whatever address, a key has a budget of its own too.
        """
        buckets = [self._worker, self._of(address, now)]
        if key is not None:
            buckets.append(self._of(f"key {key}", now))
        wait = max(bucket.wait(now) for bucket in buckets)
        if wait > LONGEST_WAIT:
            return None
        for bucket in buckets:
            bucket.charge(now, cost)
        return wait

    def _of(self, spender: str, now: float) -> Bucket:
        bucket = self._addresses.get(spender)
        return self._add(spender, now) if bucket is None else bucket

    def _add(self, address: str, now: float) -> Bucket:
        if len(self._addresses) >= MAX_ADDRESSES:
            # A full bucket says no more than a new one.
            full = [name for name, bucket in self._addresses.items() if bucket.left(now) >= bucket.burst]
            for name in full or list(self._addresses)[: MAX_ADDRESSES // 10]:
                del self._addresses[name]
        burst = BURST_OF_ADDRESS * 4 * max(self._codes, self._topics)
        bucket = self._addresses[address] = Bucket(OF_ADDRESS * self._codes, burst, now)
        return bucket


def codes_named(request: Mapping[str, Any]) -> int:
    """Return how many codes a request names; one with a start counts as several."""
    named = sum(len(names) for field in ("stocks", "codes") if isinstance(names := request.get(field), list))
    return named if request.get("start") is None else STORED_CODE * named
