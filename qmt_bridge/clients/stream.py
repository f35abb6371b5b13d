"""One stream of the client: its requests, its bookmark, what its frames and closes mean, when to connect again.

No sockets and no clock: `qmt_bridge.client` owns the connection and gives the time, in seconds, as an argument.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, Literal, get_args

import orjson

from qmt_bridge.clients.bookmark import Bookmark, fingerprint
from qmt_bridge.closes import may_reconnect
from qmt_bridge.errors import Disconnected, ServerError
from qmt_bridge.reading.places import Places
from qmt_bridge.wire.topics import Versions

logger = logging.getLogger(__name__)

# The gateway closes the socket on a request over 64 KiB; a code has at most 38 characters.
_CODES_A_REQUEST = 1000
_FIRST_DELAY = 0.5
_LONGEST_DELAY = 30.0
# A connection that lasted this long resets the count of failures. A gateway that fails sooner, again and again, must
# not be loaded with fast retries.
_GOOD_SECONDS = 60.0

# The events of /ws/trade have a `type`, as control frames do; these types are not events (docs/websocket.md).
_CONTROL_TYPES = frozenset(
    "welcome heartbeat feed skipped gap end snapshot_end closing subscribed unsubscribed subscriptions pong "
    "authenticated".split(),
)
# The gateway closes the socket after these error frames, with the same reason; the close code decides what to do.
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
    "gap",
    "lagging",
    "caught_up",
]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What happened to a stream, for `on_state`; fields that `state` does not use keep their default.

    - ``connecting``: attempt number `attempt` begins; ``connected`` or ``disconnected`` follows.
    - ``connected``: the socket is open, and every request has been sent (again).
    - ``resumed``: after a lost connection the gateway serves the stream again; trade events go on after `position`,
      the sequence number of the last event seen.
    - ``disconnected``: the connection was lost, or not made (`code`, `reason`); the next attempt is in `delay` seconds.
      The end of a stream is not reported here, because its caller sees it.
    - ``closing``: the gateway is about to close the socket (`reason`).
    - ``feed_up``, ``feed_stale``, ``feed_down``, ``feed_ended``: the state of the gateway's feeder (`reason`). With
      `data_lost`, data was lost while the feeder was away. Sockets stay open meanwhile.
    - ``snapshot_end``: all pieces of the snapshot of the markets `codes` have been delivered, `count` codes in all.
    - ``skipped``: `count` messages are lost, or an unknown number if it is 0 (`reason`: ``slow_callback``: left out
      here, because newer ones had come before the callback was ready; ``slow_client``: left out by the gateway;
      ``feed_gap``, or for trade events ``journal_gap``, which only a fault of the gateway's side can cause).
    - ``gap``: a part of what `start` asked for is missing (`reason`, `codes`; `gap` is the notice itself, with the
      positions before and behind it as far as they are known).
    - ``lagging``: the callback is behind (`reason` ``slow_callback``). From now on it gets the newest value of each
      code; what must not be left out waits. ``caught_up``: it is not behind any more, nothing waits. Their `count` is
      how many messages were left out since it fell behind, here and at the gateway: a sum of what ``skipped`` tells.
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
    gap: dict[str, Any] | None = None


class Verdict(Enum):
    """What to do with a frame."""

    DELIVER = auto()
    # Deliver it; the stream ends after it.
    LAST = auto()
    # The stream has ended before it: all up to the option `end` was delivered.
    END = auto()
    IGNORE = auto()
    # An error that does not end the stream: some codes are refused, or a close follows whose code tells what to do.
    WARN = auto()
    # The gateway serves nothing any more, but the same request may succeed later: connect again.
    AGAIN = auto()
    FAIL = auto()


def refused_codes(frame: dict[str, Any]) -> list[str]:
    """Return the codes that an error frame refuses; none if it is about the whole request."""
    listed: list[str] = frame.get("symbols") or frame.get("codes") or []
    return listed or [frame[name] for name in ("symbol", "stock_code") if name in frame]


def is_untyped(frame: dict[str, Any]) -> bool:
    """Return whether a frame is data of a stream whose data has no `type`: quotes, depth, progress."""
    return not isinstance(frame.get("type"), str)


def is_stamped(frame: dict[str, Any]) -> bool:
    """Return whether a frame is data of a stream whose frames have their positions."""
    return frame.get("type") == "data"


def is_formula_value(frame: dict[str, Any]) -> bool:
    """Return whether a frame of /ws/formula is a value."""
    return frame.get("type") == "formula_update"


def is_trade_event(frame: dict[str, Any]) -> bool:
    """Return whether a frame of /ws/trade is an event and not a control frame."""
    return isinstance(frame.get("type"), str) and frame["type"] not in _CONTROL_TYPES


def parts(codes: list[str]) -> Iterator[list[str]]:
    """Yield the codes in parts that fit into a request."""
    for start in range(0, len(codes), _CODES_A_REQUEST):
        yield codes[start : start + _CODES_A_REQUEST]


class Stream:
    """The requests of one stream, and what its frames and closes mean. `carries` tells data from control frames."""

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
        versions: Versions = "none",
        joined: bool = False,
        places: Places | None = None,
        moments: Mapping[str, int | str] = MappingProxyType({}),
    ) -> None:
        self.path = path
        # What a newer frame replaces while the caller is behind, and whether frames have many codes (backlog.Backlog).
        self.versions = versions
        self.joined = joined
        self._first_requests = list(requests)
        # The requests of the present connection, as text.
        self.requests: list[str] = []
        # Where each code goes on after a lost connection; None: the same requests are sent again.
        self._places = places
        # Of trade events: the options `start` and `end`.
        self._moments = moments
        # A download: it ends by itself, with a frame that has a `status`.
        self.finite = finite
        # Trade events: their sequence numbers are followed in `bookmark`.
        self.journaled = journaled
        # The last trade event that was judged; None as long as no sequence number is known.
        self.bookmark = bookmark
        # States that `judge` adds beside its verdict; its caller removes and reports them.
        self.news: list[StreamState] = []
        # True from a lost connection until the first frame that shows that the gateway serves the stream again.
        self.interrupted = False
        # Of a shared connection: told by which error frame codes are refused while others are served.
        self.on_refused: Callable[[dict[str, Any]], None] | None = None
        self._carries = carries
        self._codes = set(codes)
        # The field that names the codes of a request; empty where no code can be added.
        self.field = next((name for name in ("stocks", "codes") if self._has(name) and not finite), "")
        # What every request has besides.
        self._terms = {name: value for request in self._first_requests[:1] for name, value in request.items()}
        self._terms.pop(self.field, None)
        # Whether codes were taken away, so that frames of them may still come.
        self._is_narrowed = False
        self._feed: str | None = None
        # Whether the key sees the events of some accounts only.
        self._some_accounts = False
        self.opened()

    def opened(self) -> None:
        """Forget the old connection: every request is sent again on the new one."""
        self.closing = False
        resumed = self._first_requests
        if self._places is not None:
            resumed = [again for request in resumed for again in self._places.resume(request)]
        if self.field and not resumed:
            # Every code was removed. The gateway closes a socket that never sends a request.
            resumed = [{"action": "ping"}]
        self.requests = [orjson.dumps(request).decode() for request in resumed]
        self._asked = frozenset(self._codes)
        # The answers to these that have not ended yet (option `end`).
        self._unended = max(1, len(self.requests))
        self._unrefused = set(self._codes)
        self._failure: dict[str, Any] | None = None
        self._compares = self.bookmark is not None and self.bookmark.event is not None

    @property
    def codes(self) -> frozenset[str]:
        """Return the codes that the stream has now."""
        return frozenset(self._codes)

    def emptied(self) -> Stream:
        """Return a stream of the same kind without codes."""
        empty = Stream(
            self.path, self._first_requests, self._codes, self._carries, versions=self.versions, joined=self.joined
        )
        empty.remove(self._codes)
        empty.opened()
        return empty

    @property
    def shared_by(self) -> bytes:
        """Return what streams have in common that one connection can serve; nothing if it has to be its own.

        What must not be left out is not shared: while one loop is slow, all others would have to wait for it.
        """
        if not self.is_changeable or self._places is not None or self.versions == "none":
            return b""
        return self.path.encode() + orjson.dumps(self._terms, option=orjson.OPT_SORT_KEYS)

    @property
    def has_snapshot(self) -> bool:
        """Return whether the last value of each code comes first."""
        return self._terms.get("snapshot", True) is not False

    def _has(self, name: str) -> bool:
        return any(name in request for request in self._first_requests)

    @property
    def is_changeable(self) -> bool:
        """Return whether codes can be added and removed."""
        return bool(self.field) and "end" not in self._terms

    @property
    def unchangeable(self) -> str:
        """Return why they cannot."""
        return f"codes cannot be added to a stream of {self.path}" + (" that has an end" if self.field else "")

    def add(self, codes: Iterable[str]) -> list[dict[str, Any]]:
        """Take further codes into the stream; return the requests for those that are new."""
        new = [code for code in dict.fromkeys(codes) if code not in self._codes]
        requests = self._subscribing(new)
        self._first_requests += requests
        self._codes.update(new)
        self._unrefused.update(new)
        if self._places is not None:
            self._places.add(new)
        return requests

    def remove(self, codes: Iterable[str]) -> list[dict[str, Any]]:
        """Take codes out of the stream; return the requests that end them."""
        ended = [code for code in dict.fromkeys(codes) if code in self._codes]
        self._codes.difference_update(ended)
        self._unrefused.difference_update(ended)
        self._is_narrowed = self._is_narrowed or bool(ended)
        left = [
            {**request, self.field: [code for code in request[self.field] if code in self._codes]}
            for request in self._first_requests
        ]
        self._first_requests = [request for request in left if request[self.field]]
        return self._unsubscribing(ended)

    def late(self) -> list[dict[str, Any]]:
        """Return what to ask besides the requests of this connection: codes came and went while it was made."""
        new = [code for code in self._codes if code not in self._asked]
        ended = [code for code in self._asked if code not in self._codes]
        subscribing = [{"action": "subscribe", **request} for request in self._subscribing(new)]
        return subscribing + [{"action": "unsubscribe", **request} for request in self._unsubscribing(ended)]

    def _subscribing(self, codes: list[str]) -> list[dict[str, Any]]:
        return [{self.field: part, **self._terms} for part in parts(codes)]

    def _unsubscribing(self, codes: list[str]) -> list[dict[str, Any]]:
        detail: dict[str, Any] = {name: self._terms[name] for name in ("period", "gear_num") if name in self._terms}
        return [{self.field: part, **detail} for part in parts(codes)]

    def _keep_wanted(self, frame: dict[str, Any]) -> bool:
        """Take records of removed codes out of a frame; return whether any is left."""
        data: dict[str, Any] = frame if self._places is None else frame["data"]
        for code in [code for code in data if code not in self._codes]:
            if code.rpartition(".")[2] not in self._codes:
                del data[code]
        return bool(data)

    @property
    def after(self) -> int | None:
        """Return the sequence number after which events are requested: one before the last event seen.

        So the gateway sends that event again, and it is compared. A journal that lost events, or another journal, may
        have given the same sequence numbers to other events; without the comparison these would be missed unnoticed.
        """
        return None if self.bookmark is None else self.bookmark.seq - self._compares

    @property
    def parameters(self) -> dict[str, int | str]:
        """Return the parameters of the URL: where trade events begin, which is behind the last seen one, and end."""
        if self.after is None:
            return dict(self._moments)
        end = {"end": self._moments["end"]} if "end" in self._moments else {}
        return {"after": self.after, **end}

    def judge(self, frame: dict[str, Any]) -> Verdict:
        """Return what to do with `frame`, and move the bookmark; raise `ServerError` for another journal."""
        if frame.get("type") == "error" or (self.finite and frame.get("status") == "error"):
            return self._judge_error(frame)
        if not self._carries(frame):
            if frame.get("type") == "end":
                self._unended -= 1
                return Verdict.IGNORE if self._unended else Verdict.END
            self._take_notice(frame)
            return Verdict.IGNORE
        if self._is_narrowed and not self._keep_wanted(frame):
            return Verdict.IGNORE
        if self._places is not None and not self._places.take(frame):
            return Verdict.IGNORE
        if self.journaled and isinstance(frame.get("seq"), int) and self._is_seen(Bookmark(frame["seq"]), frame):
            return Verdict.IGNORE
        self._resumed()
        return Verdict.LAST if self.finite and frame.get("status") == "done" else Verdict.DELIVER

    def shown(self, frame: dict[str, Any]) -> dict[str, Any]:
        """Return a data frame as the caller gets it: without its position, which was asked for by the client itself."""
        data: dict[str, Any] = frame if self._places is None else frame["data"]
        return data

    def _is_seen(self, at: Bookmark, event: dict[str, Any]) -> bool:
        """Move the bookmark to an event; return whether it is the event that was seen last, which came again."""
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
        # A bookmark from a `subscribed` frame has no event, and the next event need not follow it directly.
        # A key that sees some accounts only gets events with holes between them.
        if before is not None and before.event is not None and at.seq != before.seq + 1 and not self._some_accounts:
            logger.warning("%s: the event after %d is %d", self.path, before.seq, at.seq)
            lost = max(0, at.seq - before.seq - 1)
            self.news.append(StreamState("skipped", self.path, "journal_gap", count=lost))
        self.bookmark = at
        return False

    def _take_notice(self, frame: dict[str, Any]) -> None:
        reason = frame.get("reason") or ""
        if frame.get("type") == "welcome":
            self._some_accounts = bool(frame.get("accounts"))
            if self._places is not None and isinstance(frame.get("epoch"), int):
                self._places.began(frame["epoch"])
        match frame.get("type"):
            case "subscribed" if self.journaled:
                # Begin at the journal's end, so that events during a lost connection are replayed although no event
                # was seen before it. 0 means "not known". Replayed events come after this frame.
                if self.bookmark is None and frame.get("seq"):
                    # With a `start`, the events from there on.
                    self.bookmark = Bookmark(frame.get("after", frame["seq"]))
                if (begins := frame.get("start")) and not begins.get("complete"):
                    self.news.append(StreamState("gap", self.path, begins.get("reason") or "", gap=begins))
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
            case "gap":
                named = frame.get("code")
                codes = () if named is None else (named,)
                self.news.append(StreamState("gap", self.path, reason, codes=codes, gap=frame))
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
            # The event to compare is too old to be replayed, but the journal still has every event after it.
            self.bookmark = Bookmark(frame["oldest"])
            return Verdict.AGAIN
        refused = refused_codes(frame)
        self._unrefused.difference_update(refused)
        if refused and self._unrefused:
            return Verdict.WARN
        if not frame.get("retry"):
            # Of a shared connection the refusal ends the streams that asked for these codes, and not all others.
            return Verdict.WARN if refused and self.on_refused is not None else Verdict.FAIL
        if refused:
            # Every code is refused, so no frame would ever come on this connection.
            return Verdict.AGAIN
        if self.finite:
            self._failure = frame
        return Verdict.WARN

    def closed(self, code: int | None, reason: str) -> bool:
        """Return whether to connect again after this close; raise `Disconnected` or `ServerError` for a bad end."""
        # 1013: the feeder was away. The same download can be requested again when it is back.
        if self._failure is not None and code != 1013:
            raise server_error(self._failure)
        if may_reconnect(code):
            return True
        if code != 1000:
            raise Disconnected(code, reason)
        if self.finite:
            raise Disconnected(code, reason or "closed before the download was done")
        return False


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after `failures` in a row; `jitter` in [0, 1) keeps clients from coming all at once.

    0 failures: a worker of the gateway announced its end, and other workers can take the connection already.
    """
    if not failures:
        return _FIRST_DELAY * jitter
    # A gateway may be away for days; without a limit of the exponent 2.0 ** failures would raise OverflowError.
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures - 1, 16)) * (0.5 + jitter / 2)


class Retries:
    """When to connect again. The first connection must be made before `give_up_at`; later ones have no limit."""

    def __init__(self, give_up_at: float) -> None:
        self._give_up_at = give_up_at
        self._connected_at = -math.inf
        # Attempts in a row that did not connect.
        self._attempts = 0
        # Attempts in a row that did not connect, or whose connection did not last.
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
        """Note that a connection was made: from now on there is no time limit."""
        self._give_up_at = math.inf
        self._connected_at = now
        self._attempts = 0

    def lost(self, now: float) -> None:
        """Note that the connection ended; if it lasted long enough, earlier failures no longer count."""
        if now - self._connected_at >= _GOOD_SECONDS:
            self._failures = 0

    def delay(self, now: float, jitter: float, *, announced: bool = False) -> float:
        """Count one more failure; return the seconds until the next attempt, almost none after an `announced` end."""
        # Only the first announced end is free: a gateway that restarts again and again counts as one that fails.
        delay = backoff(0 if announced and not self._failures else self._failures + 1, jitter)
        self._failures += 1
        # Waiting for at most half of the time left keeps time for one more attempt.
        return min(delay, self.left(now) / 2)


def server_error(frame: dict[str, Any]) -> ServerError:
    """Return an error frame as an exception."""
    # The frame of a failed download need not have a code.
    return ServerError(frame.get("code") or "internal", frame.get("error") or frame.get("message") or str(frame), frame)
