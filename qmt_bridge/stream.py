"""One stream of the client: its requests, its bookmark, what its frames and closes mean, when to connect again.

No sockets and no clock: `qmt_bridge.client` owns the connection and gives the time, in seconds, as an argument.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, get_args

import orjson

from qmt_bridge.bookmark import Bookmark, fingerprint
from qmt_bridge.errors import Disconnected, ServerError, may_reconnect

logger = logging.getLogger(__name__)

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
# A gateway that serves for so long is well; one that fails sooner, again and again, is not helped by haste.
_GOOD_SECONDS = 60.0

# On /ws/trade the events have a `type` as well; these are not events (WEBSOCKET.md, section 2).
_CONTROL_TYPES = frozenset(
    "welcome heartbeat feed skipped snapshot_end closing subscribed unsubscribed subscriptions pong "
    "authenticated".split(),
)
# A close with the same reason follows these error frames, and says more: its code.
_CLOSING_CODES = frozenset(("unauthorized", "forbidden", "origin_denied"))

Happening = Literal[
    "connecting",
    "connected",
    "resumed",
    "disconnected",
    "closing",
    "feed_up",
    "feed_stale",
    "feed_down",
    "feed_ended",
    "snapshot_end",
    "skipped",
]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What happened to a stream, for `on_state`; what does not concern `state` keeps its default.

    - ``connecting``: attempt number `attempt` begins; ``connected`` or ``disconnected`` follows.
    - ``connected``: the socket is open, and everything has been asked for (again).
    - ``resumed``: after a loss the stream is served again; trade events go on after `position`.
    - ``disconnected``: the connection was lost, or not made (`code`, `reason`); the next attempt is in `delay` seconds.
      The end of a stream, which its caller sees, is not told.
    - ``closing``: the gateway is about to close the socket (`reason`).
    - ``feed_up``, ``feed_stale``, ``feed_down``, ``feed_ended``: how the gateway's feeder is (`reason`); with
      `data_lost` it was away. Sockets stay open meanwhile.
    - ``snapshot_end``: all pieces of the snapshot of the markets `codes` have been delivered, `count` codes in all.
    - ``skipped``: `count` messages will not come, or some if it is 0 (`reason`: ``slow_client``, ``feed_gap``;
      ``journal_gap`` of trade events, which never happens to a gateway that is well).
    """

    state: Happening
    # The stream's URL path, such as /ws/trade.
    path: str
    reason: str = ""
    code: int | None = None
    attempt: int = 0
    delay: float = 0.0
    position: int | None = None
    count: int = 0
    data_lost: bool = False
    codes: tuple[str, ...] = ()


class Verdict(Enum):
    """What to do with a frame."""

    DELIVER = auto()
    # Deliver it and end.
    LAST = auto()
    IGNORE = auto()
    # An error that leaves the stream alive: some codes are refused, or a close that tells what to do will follow.
    WARN = auto()
    # Nothing is served any more, but the same request may succeed later.
    AGAIN = auto()
    FAIL = auto()


def refused_codes(frame: dict[str, Any]) -> list[str]:
    listed: list[str] = frame.get("symbols") or frame.get("codes") or []
    return listed or [frame[name] for name in ("symbol", "stock_code") if name in frame]


def is_untyped(frame: dict[str, Any]) -> bool:
    return not isinstance(frame.get("type"), str)


def is_formula_value(frame: dict[str, Any]) -> bool:
    return frame.get("type") == "formula_update"


def is_trade_event(frame: dict[str, Any]) -> bool:
    return isinstance(frame.get("type"), str) and frame["type"] not in _CONTROL_TYPES


class Stream:
    """One stream: what to ask, and what its frames and closes mean. Pure."""

    def __init__(
        self,
        path: str,
        requests: Iterable[dict[str, Any]],
        codes: Iterable[str],
        carries: Callable[[dict[str, Any]], bool] = is_untyped,
        *,
        finite: bool = False,
        journaled: bool = False,
        bookmark: Bookmark | None = None,
    ) -> None:
        self.path = path
        self.requests = [orjson.dumps(request).decode() for request in requests]
        # Ends by itself, with a status.
        self.finite = finite
        self.journaled = journaled
        # Of the last trade event; None before any is known.
        self.bookmark = bookmark
        # What `judge` has to say beside its verdict; the caller takes it.
        self.news: list[StreamState] = []
        # Between a loss and the first sign that the stream is served again.
        self.interrupted = False
        self._carries = carries
        self._codes = frozenset(codes)
        self._feed: str | None = None
        self.opened()

    def opened(self) -> None:
        """Start over: a new connection asks for everything again."""
        self.closing = False
        self._unrefused = set(self._codes)
        self._failure: dict[str, Any] | None = None
        self._compares = self.bookmark is not None and self.bookmark.event is not None

    @property
    def after(self) -> int | None:
        """Return the position to ask events after: one before the last seen, which comes again to be compared.

        Only so a journal is noticed that lost events which had been seen (or is another one) and has since given
        their positions to others: these would be missed without a word.
        """
        return None if self.bookmark is None else self.bookmark.seq - self._compares

    def judge(self, frame: dict[str, Any]) -> Verdict:
        """Return what to do with `frame`, and keep its position; raise `ServerError` if the journal is another one."""
        if frame.get("type") == "error" or (self.finite and frame.get("status") == "error"):
            return self._judge_error(frame)
        if not self._carries(frame):
            self._take_notice(frame)
            return Verdict.IGNORE
        if self.journaled and isinstance(frame.get("seq"), int) and self._is_seen(Bookmark(frame["seq"]), frame):
            return Verdict.IGNORE
        self._resumed()
        return Verdict.LAST if self.finite and frame.get("status") == "done" else Verdict.DELIVER

    def _is_seen(self, at: Bookmark, event: dict[str, Any]) -> bool:
        """Move to the position of an event; return whether it is the one that was seen last."""
        before, at = self.bookmark, at._replace(event=fingerprint(event))
        if self._compares:
            if at != before:
                told = (
                    f"the event at {at.seq} is not the one that was seen last: the journal lost it, or is another one"
                )
                raise ServerError("resume_expired", told, event)
            self._compares = False
            self._resumed()
            return True
        # The ack's position may be older than what this connection begins with.
        if before is not None and before.event is not None and at.seq != before.seq + 1:
            logger.warning("%s: the event after %d is %d", self.path, before.seq, at.seq)
            lost = max(0, at.seq - before.seq - 1)
            self.news.append(StreamState("skipped", self.path, "journal_gap", count=lost))
        self.bookmark = at
        return False

    def _take_notice(self, frame: dict[str, Any]) -> None:
        reason = frame.get("reason") or ""
        match frame.get("type"):
            case "subscribed" if self.journaled:
                # Where the journal stands when the events begin, so that those which fall into a lost connection are
                # replayed although none was seen before. 0 is "not known"; what is replayed comes after this frame.
                if self.bookmark is None and frame.get("seq"):
                    self.bookmark = Bookmark(frame["seq"])
                if not self._compares:
                    self._resumed()
            case "welcome" if frame.get("feed") != self._feed:
                self._take_feed(frame.get("feed"), reason, False)
            case "feed":
                self._take_feed(frame.get("state"), reason, frame.get("data_lost") is True)
            case "skipped":
                self.news.append(StreamState("skipped", self.path, reason, count=frame.get("count") or 0))
            case "snapshot_end":
                count, codes = frame.get("count") or 0, tuple(frame.get("codes") or ())
                self.news.append(StreamState("snapshot_end", self.path, count=count, codes=codes))
            case "closing":
                self.closing = True
                self.news.append(StreamState("closing", self.path, reason))

    def _take_feed(self, feed: object, reason: str, data_lost: bool) -> None:
        for state in get_args(Happening):
            if state == f"feed_{feed}":
                self._feed = str(feed)
                self.news.append(StreamState(state, self.path, reason, data_lost=data_lost))

    def _resumed(self) -> None:
        if self.interrupted:
            self.interrupted = False
            self.news.append(StreamState("resumed", self.path, position=self._seen()))

    def _seen(self) -> int | None:
        return None if self.bookmark is None else self.bookmark.seq

    def _judge_error(self, frame: dict[str, Any]) -> Verdict:
        if frame.get("code") in _CLOSING_CODES:
            return Verdict.IGNORE
        if frame.get("code") == "unknown_field":
            # The rest of the request is served.
            return Verdict.WARN
        if frame.get("code") == "resume_expired" and self._compares and frame.get("oldest") == self._seen():
            # The event to compare is too old to be replayed, those after it are all there.
            self.bookmark = Bookmark(frame["oldest"])
            return Verdict.AGAIN
        refused = refused_codes(frame)
        self._unrefused.difference_update(refused)
        if refused and self._unrefused:
            return Verdict.WARN
        if not frame.get("retry"):
            return Verdict.FAIL
        if refused:
            # A stream of which every code is refused would wait for ever.
            return Verdict.AGAIN
        if self.finite:
            self._failure = frame
        return Verdict.WARN

    def closed(self, code: int | None, reason: str) -> bool:
        """Return whether to connect again after this close; raise `Disconnected` or `ServerError` for a bad end."""
        # 1013: the feeder was away, and the same download can be asked for when it is back.
        if self._failure is not None and code != 1013:
            raise server_error(self._failure)
        if may_reconnect(code):
            return True
        if code != 1000:
            raise Disconnected(code, reason)
        if self.finite:
            raise Disconnected(code, reason or "closed before the end was told")
        return False


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after so many failures in a row; `jitter` in [0, 1) spreads clients out.

    None of them a failure is the end of a gateway's worker that was announced: others are there already.
    """
    if not failures:
        return _FIRST_DELAY * jitter
    # The exponent is bounded because a float is not: a gateway may be away for days.
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)


class Retries:
    """When to connect again. The first connection has to be made before `give_up_at`, a later one at any time."""

    def __init__(self, give_up_at: float) -> None:
        self._give_up_at = give_up_at
        self._connected_at = -math.inf
        # In a row: attempts that did not connect.
        self._attempts = 0
        # In a row: attempts that did not connect, and connections that did not last.
        self._failures = 0

    def begin(self) -> int:
        """Return the number of the attempt that begins now."""
        self._attempts += 1
        return self._attempts

    def left(self, now: float) -> float:
        """Return the seconds that are left for the first connection; infinite once there was one."""
        return self._give_up_at - now

    def is_over(self, now: float) -> bool:
        """Return whether too little time is left for one more attempt."""
        return self.left(now) < _FIRST_DELAY

    def connected(self, now: float) -> None:
        """Take note of a connection: from now on there is no limit of time."""
        self._give_up_at = math.inf
        self._connected_at = now
        self._attempts = 0

    def lost(self, now: float) -> None:
        """Take note of the end of a connection; one that lasted makes up for the failures before it."""
        if now - self._connected_at >= _GOOD_SECONDS:
            self._failures = 0

    def delay(self, now: float, jitter: float, *, announced: bool = False) -> float:
        """Count one more failure; return the seconds until the next attempt, almost none after an `announced` end."""
        # At once only the first time: a gateway that does nothing but restart is no better than one that fails.
        delay = backoff(0 if announced and not self._failures else self._failures + 1, jitter)
        self._failures += 1
        # Half of what is left keeps time for one more attempt.
        return min(delay, self.left(now) / 2)


def server_error(frame: dict[str, Any]) -> ServerError:
    # The end of a failed download need not have a code.
    return ServerError(frame.get("code") or "internal", frame.get("error") or frame.get("message") or str(frame), frame)
