"""Observe feeder, store, gateway and disk from outside: by questions over ZeroMQ, and by what threads have found.

The feeder is asked on its socket for questions, as its supervisor does: heartbeats may be held up by a consumer, and
may be lost. One thread uses it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from contextlib import suppress

import zmq

from qmt_bridge.addresses import endpoint
from qmt_bridge.alerts import hours
from qmt_bridge.alerts.gateway import Gateway
from qmt_bridge.alerts.rules import COUNTED_SECONDS, GATEWAY_ABSENT, LOST_SECONDS, Observed
from qmt_bridge.alerts.window import Window, Windows
from qmt_bridge.config import Config
from qmt_bridge.errors import WireError, WireVersionError
from qmt_bridge.handshakes import Links
from qmt_bridge.sockets import connect_dealer
from qmt_bridge.system import clock
from qmt_bridge.wire.history import StoreStatus, decode_history, decode_status
from qmt_bridge.wire.messages import FeedStatus, read_status
from qmt_bridge.wire.requests import CatchUp, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.topics import STATUS_TOPIC, STORE_TOPIC, Topic

logger = logging.getLogger(__name__)

ASK_SECONDS = 0.5
# The most that the time between two looks adds to the age of an answer: alerts that were held (SIGSTOP, a machine that
# stands still) have not asked, and the parts on the same machine may have been held too.
LOOK_MOST = 1.0


class Watch:
    """The sockets, and what is known of each part."""

    def __init__(self, config: Config, gateway: Gateway, seen: Collection[str]) -> None:
        """Connect; `seen` are the parts that have answered a process before this one. Raise `ConfigError`."""
        self.seen = set(seen)
        self._gateway = gateway
        self._has_store = config.store_days > 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._links = Links()
        self._sockets: dict[Topic, zmq.Socket[bytes]] = {}
        try:
            for topic, where in zip((STATUS_TOPIC, STORE_TOPIC), endpoint.watched_endpoints(config), strict=True):
                opened = connect_dealer(self._context, where.address, where.curve, self._links, where.name)
                self._sockets[topic] = opened
        except BaseException:
            self.close()
            raise
        self._ask_at = -math.inf
        self._status: FeedStatus | None = None
        # When each answered last, at first when this began: nothing can be said of a part before it could answer.
        self._status_at = self._store_at = self._gateway_at = self._looked_at = clock.monotonic()
        self._store: StoreStatus | None = None
        self._other_version = ""
        self._starts = Window(COUNTED_SECONDS)
        self._epochs = 0
        self._lost = Window(LOST_SECONDS)
        self._cut = Windows(COUNTED_SECONDS)
        # The newest answer of the gateway that was counted.
        self._counted_at = -math.inf

    def look(self, now: float, wall: float, holidays: Collection[str], free: int | None) -> Observed:
        """Take the answers that have come, ask again if it is time, and return what is known.

        `now` is clock.monotonic(), `wall` the seconds since 1970, `holidays` weekdays without trading as YYYYMMDD, and
        `free` the bytes that the disk has left.
        """
        held = max(0.0, now - self._looked_at - LOOK_MOST)
        self._status_at, self._store_at, self._gateway_at = (
            at + held for at in (self._status_at, self._store_at, self._gateway_at)
        )
        self._looked_at = now
        self._take(now)
        if now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            for topic, socket in self._sockets.items():
                # It raises while there is no connection.
                with suppress(zmq.Again):
                    socket.send(encode_ask(CatchUp(0, [topic])), zmq.NOBLOCK)
        self._links.look(now)
        lost, cut, gateway_age = self._counts(now)
        status = self._status
        trading_day = hours.is_trading_day(wall, holidays)
        if status is not None and status.trading_day is not None and _is_of_today(status, wall):
            # What the terminal knows of holidays.
            trading_day = trading_day and status.trading_day
        return Observed(
            trading_day=trading_day,
            trading=trading_day and hours.is_session(wall),
            status=status,
            status_age=now - self._status_at,
            link=self._other_version or str(self._links.troubles(now).get("ask_addr") or ""),
            restarts=self._starts.growth(now),
            store=self._store,
            store_age=now - self._store_at,
            store_expected=self._has_store and "store" in self.seen,
            gateway_age=gateway_age,
            gateway_expected="gateway" in self.seen,
            lost=lost,
            cut=cut,
            free=free,
        )

    def close(self) -> None:
        """Disconnect."""
        self._links.close()
        for socket in self._sockets.values():
            socket.close(linger=0)
        self._context.term()

    def _take(self, now: float) -> None:
        for topic, socket in self._sockets.items():
            while True:
                try:
                    answer = socket.recv_multipart(zmq.NOBLOCK)[-1]
                except zmq.Again:
                    break
                try:
                    if topic == STATUS_TOPIC:
                        self._take_status(answer, now)
                    else:
                        self._take_store(answer, now)
                except WireVersionError as exc:
                    self._other_version = str(exc)
                except WireError:
                    # Another program listens there: it is not the part.
                    continue

    def _take_status(self, answer: bytes, now: float) -> None:
        reply = decode_reply(answer)
        if not isinstance(reply, TopicState) or reply.body is None:
            return
        status = read_status(reply.body)
        if self._status is None:
            logger.info("alerts watch the feeder, source %s", status.source)
        elif status.epoch != self._status.epoch:
            self._epochs += 1
        self._starts.note(now, self._epochs)
        self._status, self._status_at, self._other_version = status, now, ""

    def _take_store(self, answer: bytes, now: float) -> None:
        frames = decode_history(answer).frames
        if frames:
            self._store, self._store_at = decode_status(bytes(frames[0].body)), now
            self._saw("store")

    def _counts(self, now: float) -> tuple[int | None, dict[str, int] | None, float]:
        """Return what the gateway has counted in the last minutes, and the age of its answer."""
        found = self._gateway.found
        if found is None:
            return None, None, now - self._gateway_at
        at, counted = found
        # Only a gateway that tells what it counts is surely one: another program may listen at that port.
        if counted is not None:
            self._saw("gateway")
            self._gateway_at = at
            if at > self._counted_at:
                self._counted_at = at
                self._lost.note(now, counted.lost)
                self._cut.note(now, counted.cut)
        age = now - self._gateway_at
        if counted is None or age > GATEWAY_ABSENT:
            return None, None, age
        return self._lost.growth(now), self._cut.growths(now), age

    def _saw(self, part: str) -> None:
        if part not in self.seen:
            self.seen.add(part)
            logger.info("alerts watch the %s from now on", part)


def _is_of_today(status: FeedStatus, wall: float) -> bool:
    return hours.day_name(status.time / 1000) == hours.day_name(wall)
