"""One run of a forwarder: messages down, demand and questions up, until it is stopped.

Messages and demand go through libzmq's own proxies, each in a thread of its own (`relay`). One thread does the rest:
questions and their answers, admitting clients, and looking whether the feeder's heartbeats come.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack

import zmq

from qmt_bridge import __version__, sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.curve.authenticator import Authenticator
from qmt_bridge.errors import ConfigError
from qmt_bridge.forward.health import Asked, Health, Numbers
from qmt_bridge.forward.heartbeat import Heartbeat
from qmt_bridge.forward.questions import MOST_ASKERS, Questions
from qmt_bridge.forward.relay import Relay
from qmt_bridge.handshakes import Links, connect_again
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.process.stop import Stop
from qmt_bridge.store.service import ANSWER_MARK as STORE_MARK
from qmt_bridge.system import clock

if sys.platform != "win32":
    import resource

logger = logging.getLogger(__name__)

# The longest wait for something to do; a request to end is seen after it.
WAIT_SECONDS = 0.05
LOOK_SECONDS = 1.0
# Of libzmq: connections to the feeder are read in one thread and those of clients are written in others. With keys
# every message is encrypted once for each client.
IO_THREADS = 2
# Files, and sockets of libzmq, beside those of the clients that ask.
_OTHERS = 2000


class Forwarder:
    """A forwarder with its sockets; `open`, then `turn` again and again, then `close`. One thread uses it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._closing = ExitStack()

    def open(self) -> None:
        """Connect and listen; raise `ConfigError` for addresses, keys or settings that cannot be used."""
        with ExitStack() as closing:
            where = endpoint.forwarded_endpoints(self._config)
            _raise_limit()
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS)
            context.max_sockets = 2 * MOST_ASKERS + _OTHERS
            closing.callback(context.destroy, 0)
            self._links = Links(self._connect_again)
            closing.callback(self._links.close)
            self._poller = zmq.Poller()
            # Before anything is bound: until then CURVE would accept any key.
            self._authenticator: Authenticator | None = None
            if where["market"].listened.curve is not None:
                self._authenticator = Authenticator(context, self._config.curve_dir)
                closing.callback(self._authenticator.close)
                self._poller.register(self._authenticator.socket, zmq.POLLIN)
            self._relays: dict[str, Relay] = {}
            for kind in ("market", "trade"):
                if kind in where:
                    self._relays[kind] = Relay(context, where[kind], self._links)
                    closing.callback(self._relays[kind].close)
            self._heartbeat = Heartbeat(context, self._relays["market"])
            closing.callback(self._heartbeat.close)
            self._poller.register(self._heartbeat.socket, zmq.POLLIN)
            self._questions: dict[str, Questions] = {}
            for kind, mark, unread_ms in (
                ("ask", sockets.ANSWER_MARK, 0),
                ("store", STORE_MARK, sockets.UNREAD_MS),
            ):
                if kind in where:
                    self._questions[kind] = Questions(
                        context,
                        where[kind],
                        self._links,
                        self._poller,
                        self._authenticator,
                        lambda: self._heartbeat.epoch,
                        mark,
                        unread_ms,
                    )
                    closing.callback(self._questions[kind].close)
            self._look_at = self._turned_at = clock.monotonic()
            # Why there is no connection, by settings; as of the last look.
            self._troubles = self._links.troubles(self._look_at)
            # The port of /readyz; 0 without one.
            self.health_port = 0
            if self._config.forward_health_addr:
                health = Health(self._config.forward_health_addr, self.numbers)
                closing.callback(health.close)
                self.health_port = health.port
            self._closing = closing.pop_all()
        logger.info(
            "forwarder started: %s",
            ", ".join(f"{where[kind].upstream.address} at {address}" for kind, address in self.addresses.items()),
        )

    @property
    def addresses(self) -> dict[str, str]:
        """Return where it listens, by "market", "trade", "ask" and "store"."""
        return {name: relay.address for name, relay in self._relays.items()} | {
            name: questions.address for name, questions in self._questions.items()
        }

    def turn(self) -> None:
        """Wait for something to do, and do it; raise `RuntimeError` if a proxy has ended."""
        ready = dict(self._poller.poll(self._pause_ms(clock.monotonic())))
        now = self._turned_at = clock.monotonic()
        if self._authenticator is not None and self._authenticator.socket in ready:
            self._authenticator.answer()
        self._heartbeat.take(now)
        for questions in self._questions.values():
            questions.turn(ready, now)
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look(now)

    def close(self) -> None:
        """Pass on no more."""
        self._closing.close()

    def numbers(self) -> Numbers:
        """Return how it is; from any thread."""
        now = clock.monotonic()
        return Numbers(
            __version__,
            self._heartbeat.is_there(now),
            self._heartbeat.age(now),
            now - self._turned_at,
            self._troubles,
            {name: relay.passed for name, relay in self._relays.items()},
            {
                name: Asked(each.asked, each.answered, each.refused, each.dropped, len(each))
                for name, each in self._questions.items()
            },
        )

    def _look(self, now: float) -> None:
        for relay in self._relays.values():
            if relay.failure is not None:
                raise RuntimeError(f"the proxy of {relay.name} has ended: {relay.failure}") from relay.failure
            relay.look()
        notices = self._links.look(now)
        self._troubles = self._links.troubles(now)
        for notice in notices:
            logger.log(logging.INFO if notice.good else logging.WARNING, "%s", notice.text)
        self._heartbeat.look(now)
        for questions in self._questions.values():
            questions.expire(now)
        if self._authenticator is not None:
            self._authenticator.look(now)
            self._end_revoked(self._authenticator)

    def _end_revoked(self, authenticator: Authenticator) -> None:
        """End the connections of clients whose key was taken back."""
        for name in authenticator.revoked():
            logger.warning("a client key was taken back: the connections of %s end, and the others come again", name)
            authenticator.bound_anew(name)
            for relay in self._relays.values():
                if relay.name == name:
                    relay.bind_anew()
            for questions in self._questions.values():
                if questions.name == name:
                    questions.bind_anew()
            if name == self._relays["market"].name:
                self._poller.unregister(self._heartbeat.socket)
                self._heartbeat.anew()
                self._poller.register(self._heartbeat.socket, zmq.POLLIN)

    def _connect_again(self, socket: zmq.Socket[bytes], address: str) -> None:
        for relay in self._relays.values():
            if relay.up is socket:
                relay.connect_again(address)
                return
        connect_again(socket, address)

    def _pause_ms(self, now: float) -> int:
        until = now + WAIT_SECONDS
        for questions in self._questions.values():
            deadline = questions.deadline()
            if deadline is not None:
                until = min(until, deadline)
        return max(0, int((until - now) * 1000) + (until > now))


def _raise_limit() -> None:
    """Let this process have the files that its clients may need, as far as the system allows."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 6 * MOST_ASKERS + _OTHERS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def run(config: Config, stop: Stop) -> int:
    """Run a forwarder until `stop` is set; return the exit code of the process. Raise `ConfigError`."""
    forwarder = Forwarder(config)
    forwarder.open()
    try:
        while not stop.is_set():
            forwarder.turn()
    except (ConfigError, RuntimeError) as exc:
        # What was lost meanwhile is a gap to the clients, which come again to a forwarder that is started anew.
        logger.critical("the forwarder cannot go on: %s", exc)
        return TRY_AGAIN
    finally:
        forwarder.close()
    return 0
