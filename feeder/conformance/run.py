"""One run of a source under the checks: the calls that the feeder makes, on the thread and within the time it does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from feeder.conformance.sink import WatchingSink
from feeder.source import DownloadRequest, Health, Source
from qmt_bridge.errors import ERROR_CODES, Refused
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.topics import Topic, TopicParts, download_topic, parse_topic

# Seconds within which a call that must return at once has to. It takes microseconds, on a slow machine too.
AT_ONCE = 2.0
# The longest time of `Source.close` (see there), and what a thread may take after it to end.
CLOSE_SECONDS = 2.0
END_SECONDS = 1.0
# The longest time of `Source.start`: it may open a connection.
START_SECONDS = 60.0

Some = TypeVar("Some")


def require(condition: object, said: str) -> None:
    """Raise `AssertionError` that says what the source does not do."""
    if not condition:
        raise AssertionError(said)


class NotStarted(AssertionError):
    """The source was not up within the time of a start."""


class Run:
    """A source from its start to its close."""

    def __init__(self, source: Source, seconds: float, past: Sequence[TradeEvent] = (), slowness: float = 1.0) -> None:
        """Start `source`; what has to come comes within `seconds`, and `past` are the events of the journal.

        The limits of calls are `slowness` times the usual ones. Raise `NotStarted` if the start takes too long.
        """
        self.source = source
        self._slowness = slowness
        self.sink = WatchingSink(past)
        self.seconds = seconds
        self._before = set(threading.enumerate())
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # As the feeder's publisher: one thread makes all calls.
        self._thread = threading.Thread(target=self._make_calls, name="conformance", daemon=True)
        self._thread.start()
        self._before.add(self._thread)
        self._jobs = 0
        try:
            self.call("start", START_SECONDS, self.sink, late=NotStarted)
            self.until(
                lambda: any(state == "up" for state, *_ in self.sink.states),
                "the state is not up",
                START_SECONDS,
                late=NotStarted,
            )
        except BaseException:
            with suppress(AssertionError):
                self.close()
            raise

    def call(self, name: str, seconds: float, *arguments: object, late: type[AssertionError] = AssertionError) -> Any:
        """Return what a method of the source returns; raise `late` if it does not return within `seconds`."""
        done: queue.SimpleQueue[tuple[object, BaseException | None]] = queue.SimpleQueue()

        def make() -> None:
            try:
                done.put((getattr(self.source, name)(*arguments), None))
            except BaseException as exc:
                done.put((None, exc))

        self._calls.put(make)
        try:
            answer, error = done.get(timeout=seconds)
        except queue.Empty:
            raise late(f"{name} has not returned within {seconds:g} s") from None
        if isinstance(error, Exception):
            raise error
        if error is not None:
            # A SystemExit, say, would end the checks too.
            raise AssertionError(f"{name} raises {type(error).__name__}: {error}") from error
        return answer

    def subscribe(self, topic: Topic) -> None:
        """Subscribe a topic; raise `Refused`."""
        self.sink.want(topic)
        self._at_once("subscribe", topic, parse_topic(topic))

    def unsubscribe(self, topic: Topic) -> None:
        """Unsubscribe a topic, or cancel a download."""
        self._at_once("unsubscribe", topic, parse_topic(topic))

    def download(self, request: DownloadRequest) -> Topic:
        """Begin a download and return its topic; raise `Refused`."""
        self._jobs += 1
        topic = download_topic(f"conformance-{self._jobs}")
        self._at_once("download", topic, request)
        return topic

    def history(self, number: int, topic: Topic, parts: TopicParts) -> None:
        """Ask for the history of the newest day; raise `Refused`."""
        self._at_once("history", number, topic, parts, 0)

    def _at_once(self, name: str, *arguments: object) -> None:
        try:
            self.call(name, AT_ONCE * self._slowness, *arguments)
        except Refused as exc:
            require(exc.code in ERROR_CODES, f"{name} refuses with {exc.code!r}, which is no error code")
            require(isinstance(exc.reason, str) and exc.reason, f"{name} refuses without a reason")
            require(name != "unsubscribe", "unsubscribe raises Refused")
            raise
        except AssertionError:
            raise
        except Exception as exc:
            raise AssertionError(f"{name} raises {type(exc).__name__}: {exc}") from exc

    def until(
        self,
        condition: Callable[[], object],
        said: str,
        seconds: float | None = None,
        *,
        late: type[AssertionError] = AssertionError,
    ) -> None:
        """Wait for what has to come, or raise `late` with `said`; fail at once with what the sink has found."""
        limit = self.seconds if seconds is None else seconds
        came = self.sink.wait(lambda: self.sink.faults or condition(), limit)
        self.check()
        state = f" (its state is {self.sink.states[-1]})" if self.sink.states else ""
        if not came:
            raise late(f"{said} within {limit:g} s{state}")

    def serve(self, topic: Topic) -> None:
        """Subscribe a topic and wait until the source has accepted it, or published on it."""
        accepted, count = self.sink.accepted.count(topic), self.sink.count(topic)
        try:
            self.subscribe(topic)
        except Refused as exc:
            raise AssertionError(f"{topic} is refused: {exc.code}: {exc.reason}") from exc
        self.until(
            lambda: (
                topic in self.sink.refused
                or self.sink.accepted.count(topic) > accepted
                or self.sink.count(topic) > count
            ),
            f"{topic} is neither accepted nor refused, and nothing is published on it,",
        )
        require(topic not in self.sink.refused, f"{topic} is refused: {self.sink.refused.get(topic)}")

    def serve_again(self, topic: Topic) -> None:
        """Subscribe a topic that is subscribed; raise `AssertionError` if it is refused now."""
        try:
            self.subscribe(topic)
        except Refused as exc:
            raise AssertionError(f"{topic} is refused at its second subscription: {exc.code}: {exc.reason}") from exc

    def asked(self) -> dict[str, object]:
        """Return what the source answers to the questions that other threads ask, on a thread of their own."""
        answers: dict[str, object] = {}

        def ask(name: str) -> None:
            try:
                answers[name] = getattr(self.source, name)()
            except Exception as exc:
                answers[name] = exc

        # Capabilities may look at an SDK, and have a thread of their own in the feeder too.
        for name in ("hung", "health", "upstream", "capabilities"):
            thread = threading.Thread(target=ask, args=(name,), name=f"conformance-{name}", daemon=True)
            self._before.add(thread)
            thread.start()
            thread.join(self.seconds if name == "capabilities" else AT_ONCE * self._slowness)
            require(name in answers, f"{name} waits, and it is called several times a second")
            require(not isinstance(answers[name], Exception), f"{name} raises {answers[name]!r}")
        _check_answers(answers)
        return answers

    def close(self) -> None:
        """Close the source, which may be closed already; fail if it takes too long or leaves a thread."""
        if self.sink.closed:
            return
        closing = threading.Thread(target=self._close, name="conformance-close", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS * self._slowness + 0.5)
        self._calls.put(None)
        require(not closing.is_alive(), f"close has not returned within {CLOSE_SECONDS:g} s")
        self.sink.closed = True
        require(self._error is None, f"close raises {self._error!r}")
        self._thread.join(AT_ONCE * self._slowness)
        left: list[str] = []
        self.sink.wait(lambda: not self._left(left), END_SECONDS * self._slowness)
        require(not left, f"threads are left after close: {', '.join(left)}")

    def check(self) -> None:
        """Fail with what the sink has found."""
        require(not self.sink.faults, "; ".join(dict.fromkeys(self.sink.faults[:5])))

    def _close(self) -> None:
        self._error: Exception | None = None
        try:
            self.source.close()
        except Exception as exc:
            self._error = exc

    def _left(self, left: list[str]) -> list[str]:
        left[:] = sorted(
            each.name for each in set(threading.enumerate()) - self._before if not each.name.startswith("conformance")
        )
        return left

    def _make_calls(self) -> None:
        while call := self._calls.get():
            call()


def _check_answers(answers: Mapping[str, object]) -> None:
    hung, health, upstream = answers["hung"], answers["health"], answers["upstream"]
    require(hung is None or isinstance(hung, str), f"hung returns {hung!r}, neither None nor a text")
    require(isinstance(health, Health), f"health returns {health!r}, which is no Health")
    require(isinstance(upstream, int) and upstream >= 0, f"upstream returns {upstream!r}, which is no number")
    lacks = answers["capabilities"]
    require(isinstance(lacks, Mapping), f"capabilities returns {lacks!r}, which is no mapping")
    assert isinstance(lacks, Mapping)
    require(
        all(isinstance(each, str) for pair in lacks.items() for each in pair),
        f"capabilities are texts, each with what it lacks, and not {dict(lacks)!r}",
    )
