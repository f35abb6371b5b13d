"""The source ``push``: programs of the user's connect and push records (docs/push.md).

One thread, "push", has an asyncio loop with all connections. The feeder's calls are handed over to it, and it calls the
sink.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from feeder.push.identities import WINDOW_MS
from feeder.push.listener import Listener
from feeder.push.offer import named, read_permits
from feeder.push.pushers import Pushers
from feeder.push.spoken import SERVED
from feeder.source import PROTOCOL, DownloadRequest, Health, Sink
from qmt_bridge.config import Config
from qmt_bridge.errors import Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.topics import Kind, Topic, TopicParts

logger = logging.getLogger(__name__)

# Part of the two seconds that `close` may take.
CLOSE_SECONDS = 1.5
# Calls of the feeder that are made before another connection has its turn: some 5 ms.
TURN_CALLS = 500
_DAY_MS = 24 * 3600 * 1000


class PushSource:
    """All data that pushers push to `config.push_addr`."""

    protocol = PROTOCOL
    name = "push"
    lossless = False

    def __init__(self, config: Config, *, real: bool = False) -> None:
        """`real`: trade events are those beside another source, which are real, so none may be invented."""
        self._config = config
        self._real = real
        self._permits = read_permits(config.pushers)
        self.kinds = (
            frozenset(kind for permit in self._permits.values() for kind in permit.markets) if self._permits else SERVED
        )
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._closing = threading.Event()
        self._failure: str | None = None
        # Calls of the feeder; whether the loop was woken for them.
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False
        self._sink: Sink
        self._listener: Listener
        self._pushers: Pushers | None = None
        self._loop: asyncio.AbstractEventLoop

    @property
    def simulated(self) -> bool:
        """Return whether a pusher invents its prices."""
        return self._pushers is not None and self._pushers.simulated

    @property
    def address(self) -> str:
        """Return where pushers connect, once the source is started."""
        return self._listener.address

    def may_serve(self, parts: TopicParts) -> bool:
        """Return whether a pusher may serve a topic by the setting `pushers`."""
        return not self._permits or bool(named(self._permits, parts))

    def start(self, sink: Sink) -> None:
        """Listen and start the thread; raise `ConfigError`."""
        self._sink = sink
        self._listener = Listener(self._config)
        # What the journal does not keep is not known after a restart.
        window_ms = min(WINDOW_MS, self._config.journal_days * _DAY_MS)
        key = self._config.push_key
        self._pushers = Pushers(sink, self._permits, key, clock.time_ns(), real=self._real, window_ms=window_ms)
        # Also on Windows, where asyncio would take the Proactor loop: that one closes a connection whose last line is
        # under way with what is unread, which takes the line from a pusher, and logs an error of one that was reset.
        # Its limit, 512 sockets, is far above `MOST`.
        self._loop = asyncio.SelectorEventLoop()
        self._thread.start()
        logger.info("pushers connect at %s", self._listener.address)

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Begin to publish `topic` (see `Source`)."""
        assert self._pushers is not None
        self._hand_over(partial(self._pushers.subscribe, topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        """Stop publishing `topic`; of a download: cancel it."""
        assert self._pushers is not None
        self._hand_over(partial(self._pushers.unsubscribe, topic, parts))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        """Have a pusher download (see `Source`)."""
        assert self._pushers is not None
        lack = self._pushers.served.get(Kind.DOWNLOAD, "")
        if lack:
            raise Refused("upstream_unavailable", f"download: {lack}")
        parts = TopicParts(Kind.DOWNLOAD, topic.split("/")[1], "")
        self._hand_over(partial(self._pushers.download, topic, parts, request))

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        """Ask the pusher of `topic` for its day (see `Source`)."""
        assert self._pushers is not None
        self._hand_over(partial(self._pushers.history, number, topic, parts, day_ms))

    def capabilities(self) -> dict[str, str]:
        """Return for each kind of topics whether a pusher serves it (see `Source`)."""
        assert self._pushers is not None
        return {str(kind): self._pushers.served.get(kind, "") for kind in sorted(self.kinds)}

    def upstream(self) -> int:
        """Return how many topics pushers serve."""
        return 0 if self._pushers is None else self._pushers.upstream

    def health(self) -> Health:
        """Return the pushers (see `Source`)."""
        if self._pushers is None:
            return Health()
        refused = dict(self._pushers.connections_refused)
        refused["forbidden"] += self._listener.forbidden
        return Health(pushers=self._pushers.listed, pushers_refused=refused)

    def hung(self) -> str | None:
        """Return why the thread has ended, if it has."""
        return self._failure

    def close(self) -> None:
        """End all connections and the thread."""
        self._closing.set()
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(CLOSE_SECONDS)

    def _hand_over(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take_calls)

    def _take_calls(self) -> None:
        self._woken = False
        for _ in range(TURN_CALLS):
            if not self._calls:
                return
            call = self._calls.popleft()
            try:
                call()
            except Exception:
                # One call costs no other one.
                logger.exception("a call of the feeder failed")
        if self._calls and not self._woken:
            self._woken = True
            self._loop.call_soon(self._take_calls)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as exc:
            logger.exception("the thread of the pushers has failed")
            self._failure = f"the thread of the pushers has failed: {exc}"
            self._sink.set_state("down", self._failure, data_lost=True)
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        assert self._pushers is not None
        if self._closing.is_set():
            return
        self._pushers.start(self._closing)
        try:
            await self._listener.serve(self._pushers)
        except asyncio.CancelledError:
            if not self._closing.is_set():
                raise
        # Transports are closed by the loop, and the last line of a connection that was refused leaves.
        await asyncio.sleep(0.05)

    def _stop(self) -> None:
        assert self._pushers is not None
        self._pushers.close()
        self._listener.close()
