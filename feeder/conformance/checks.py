"""The checks, as a class to inherit from: pytest runs its methods, and so does `python -m feeder.conformance`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import ClassVar
from unittest import SkipTest

from feeder.conformance import records
from feeder.conformance.run import NotStarted, Run, require
from feeder.conformance.sink import is_among
from feeder.source import DownloadRequest, Source
from feeder.sources.installed import lacks
from qmt_bridge.errors import ErrorCode, Refused
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import TradeEvent
from qmt_bridge.wire.topics import Kind, Topic, parse_topic

# The longest time until a history is answered (see `Source.history`).
HISTORY_SECONDS = 60.0


class SourceConformance:
    """What the feeder relies on. A subclass says what its source is, and what it serves.

    Each check makes a source of its own with `make_source`, starts and closes it. A check of something that the source
    does not have, or that the subclass cannot bring about, is skipped.
    """

    # Topics that it serves and publishes on: at least one of each kind that is subscribed.
    topics: ClassVar[Sequence[str]] = ()
    # Topics that it refuses, each with the code.
    refused: ClassVar[Mapping[str, ErrorCode]] = {}
    # A download that succeeds, and one that is impossible: it is refused, or ends by an error.
    good_download: ClassVar[DownloadRequest | None] = None
    bad_download: ClassVar[DownloadRequest | None] = None
    # Whether it plays a recording: its trade events are those of then, of no session, and each start plays them again.
    is_recording: ClassVar[bool] = False
    # The longest wait, in seconds, for what has to come; and the wait for what must not come.
    seconds: ClassVar[float] = 10.0
    quiet_seconds: ClassVar[float] = 1.0
    # Times that the limits of calls are longer, for a machine that does much else.
    slowness: ClassVar[float] = 1.0
    # Why the source has not started under an earlier check of this object, which has then waited a minute.
    _not_started = ""

    # -- What a subclass says

    def make_source(self) -> Source:
        """Return a source that was not started."""
        raise NotImplementedError

    def push(self, source: Source, topic: Topic) -> None:
        """Let what is behind the source publish on `topic`, which it serves; nothing if that comes by itself."""

    def break_session(self, source: Source) -> None:
        """Break the connection of the source to what is behind it."""
        raise SkipTest("nothing breaks the session of this source")

    def mend_session(self, source: Source) -> None:
        """Let the source connect again; nothing if it does so by itself."""

    def trade(self, source: Source) -> None:
        """Let an order be filled; each call has the same fill again. Nothing if trade events come by themselves."""

    # -- The checks

    def test_it_is_a_source(self) -> None:
        """It has what `Source` has, and its constructor starts nothing."""
        before = set(threading.enumerate())
        source = self.make_source()
        started = {each.name for each in set(threading.enumerate()) - before}
        require(not started, f"the constructor starts threads, and start does: {', '.join(started)}")
        said = lacks(source, getattr(source, "name", ""))
        require(not said, said)
        kinds = {parse_topic(topic).kind for topic in self.topics}
        wanted = {Kind(kind) for kind in source.kinds} - {Kind.DOWNLOAD, Kind.TRADE}
        require(kinds == wanted, f"topics has {sorted(kinds)}, and the kinds to subscribe are {sorted(wanted)}")

    def test_its_session_is_up_after_the_start(self) -> None:
        """It reports a state, and becomes ``up``."""
        with self._running() as run:
            require(isinstance(run.source.simulated, bool), "simulated is neither True nor False after the start")

    def test_a_topic_is_served_and_published(self) -> None:
        """Each topic is accepted, and its messages have the documented shape."""
        with self._running() as run:
            for topic in self._topics():
                run.serve(topic)
                self._push_until(run, topic, 0)

    def test_a_topic_that_comes_back_is_published_again(self) -> None:
        """After unsubscribe and subscribe there are new messages, or the newest one again."""
        with self._running() as run:
            for topic in self._topics():
                run.serve(topic)
                self._push_until(run, topic, 0)
                run.unsubscribe(topic)
                count = run.sink.count(topic)
                run.serve(topic)
                self._push_until(run, topic, count)

    def test_calls_can_be_repeated(self) -> None:
        """Subscribe and unsubscribe may come twice, and for a topic that was never subscribed."""
        with self._running() as run:
            for topic in self._topics():
                run.unsubscribe(topic)
                run.serve(topic)
                run.serve_again(topic)
                self._push_until(run, topic, 0)
                run.unsubscribe(topic)
                run.unsubscribe(topic)
            run.until(lambda: run.source.upstream() == 0, "upstream is not 0 after all topics were unsubscribed")

    def test_nothing_is_published_after_unsubscribe(self) -> None:
        """What was queued may still come; then nothing comes for `quiet_seconds`."""
        with self._running() as run:
            for topic in self._topics():
                run.serve(topic)
                self._push_until(run, topic, 0)
            for topic in self._topics():
                run.unsubscribe(topic)
            for topic in self._topics():
                self.push(run.source, topic)
            until = clock.monotonic() + self.seconds
            while run.sink.wait(partial(self._more, run, run.sink.total()), self.quiet_seconds):
                require(clock.monotonic() < until, f"messages still come {self.seconds:g} s after unsubscribe")

    def test_what_it_cannot_serve_is_refused(self) -> None:
        """Such a topic is refused with its code, by an error or through the sink, and nothing is published on it."""
        if not self.refused:
            raise SkipTest("no topic is named that this source refuses")
        with self._running() as run:
            for text, code in self.refused.items():
                topic = Topic(text)
                try:
                    run.subscribe(topic)
                except Refused as exc:
                    found: str = exc.code
                else:
                    run.until(partial(run.sink.refused.get, topic), f"{topic} is not refused")
                    found = run.sink.refused[topic][0]
                    run.unsubscribe(topic)
                require(found == code, f"{topic} is refused with {found}, and not with {code}")
                require(not run.sink.count(topic), f"{topic} is refused, and a message has come")

    def test_a_download_is_told_until_its_end(self) -> None:
        """There is progress, and one end, which is the last message."""
        with self._downloading() as (run, request):
            topic = run.download(request)
            self._ended(run, topic)
            end = run.sink.bodies[topic][-1]
            require(end["status"] == "done", f"the download has failed: {end}")
            run.sink.wait(lambda: run.sink.faults, self.quiet_seconds)

    def test_a_download_that_is_cancelled_ends(self) -> None:
        """Unsubscribe cancels it, and its end is published."""
        with self._downloading() as (run, request):
            topic = run.download(request)
            run.unsubscribe(topic)
            self._ended(run, topic)
            run.unsubscribe(topic)
            run.sink.wait(lambda: run.sink.faults, self.quiet_seconds)

    def test_an_impossible_download_is_refused(self) -> None:
        """It is refused, or its end says the error; a source without downloads refuses each of them."""
        with self._running() as run:
            request = self.bad_download
            if Kind.DOWNLOAD not in run.source.kinds:
                request = DownloadRequest(("600519.SH",), "1d", "", "")
            elif request is None:
                raise SkipTest("no download is named that is impossible")
            try:
                topic = run.download(request)
            except Refused:
                return
            require(Kind.DOWNLOAD in run.source.kinds, "it has no downloads, and download does not raise Refused")
            self._ended(run, topic)
            end = run.sink.bodies[topic][-1]
            require(end["status"] == "error", f"an impossible download has the end {end}")

    def test_a_history_is_answered_once(self) -> None:
        """The answer has what was published before, oldest first; or it is refused."""
        with self._running() as run:
            topics = [topic for topic in self._topics() if parse_topic(topic).kind is Kind.QUOTE]
            if not topics:
                raise SkipTest("only quotes have a history")
            for number, topic in enumerate(topics, 1):
                run.serve(topic)
                self._push_until(run, topic, 0)
                published = run.sink.bodies[topic][-1]
                try:
                    run.history(number, topic, parse_topic(topic))
                except Refused:
                    continue
                self._check_history(run, number, topic, published)

    def test_a_break_is_told_with_the_loss_of_data(self) -> None:
        """The state leaves ``up`` with a reason, comes back with `data_lost`, and topics are published again."""
        with self._running() as run:
            topic = self._topics()[0]
            run.serve(topic)
            self._push_until(run, topic, 0)
            seen = len(run.sink.states)
            self.break_session(run.source)
            run.until(lambda: any(state != "up" for state, *_ in run.sink.states[seen:]), "no other state is told")
            _, reason, _ = next(each for each in run.sink.states[seen:] if each[0] != "up")
            require(reason, "the state after a break has no reason")
            self.mend_session(run.source)
            run.until(lambda: run.sink.states[-1][0] == "up", "the state is not up again")
            require(any(lost for *_, lost in run.sink.states[seen:]), "no state after the break says data_lost")
            self._push_until(run, topic, run.sink.count(topic))

    def test_other_threads_may_ask_it(self) -> None:
        """Questions about its condition are answered at any time, at once."""
        with self._running() as run:
            run.asked()
            for topic in self._topics():
                run.subscribe(topic)
                run.asked()
            for topic in self._topics():
                run.unsubscribe(topic)
            answers = run.asked()
            require(answers["hung"] is None, f"it says that it hangs: {answers['hung']}")

    def test_a_trade_event_has_its_form(self) -> None:
        """Events have a documented type, and no state of an account shows its number."""
        with self._trading() as run:
            accounts = {account for account, *_ in run.sink.trades}
            shown = {each.account for told in run.sink.accounts for each in told}
            require(
                shown or self.is_recording, "it publishes trade events, and no set_accounts says for which accounts"
            )
            require(not accounts & shown, "the state of an account shows its number, which no key protects: use mask")

    def test_a_fill_is_published_once(self) -> None:
        """Neither a resend nor a restart makes a second event of a fill that the journal has."""
        if self.is_recording:
            raise SkipTest("each start plays the recording again")
        with self._trading() as run:
            self.trade(run.source)
            run.sink.wait(lambda: run.sink.faults, self.quiet_seconds)
            past = run.sink.trades
        if not any(event == "trade" and data.get("traded_id") for _, event, data in past):
            raise SkipTest("no fill with an identity has come")
        events = [TradeEvent(event, seq, dict(data)) for seq, (_, event, data) in enumerate(past, 1)]
        with self._running(events) as again:
            self.trade(again.source)
            again.sink.wait(lambda: again.sink.faults, self.quiet_seconds)
            fills = [data for _, event, data in again.sink.trades if event == "trade"]
            known = [data for _, event, data in past if event == "trade"]
            twice = [fill.get("traded_id") for fill in fills if is_among(fill, known)]
            require(not twice, f"fills of the journal are published again after a restart: {twice[:3]}")

    def test_it_closes_in_time_and_leaves_nothing(self) -> None:
        """Close returns within two seconds, with topics and a download open; no thread is left, and nothing comes."""
        with self._running() as run:
            for topic in self._topics():
                run.subscribe(topic)
            if Kind.DOWNLOAD in run.source.kinds and self.good_download is not None:
                run.download(self.good_download)
            run.close()
            run.sink.wait(lambda: run.sink.faults, self.quiet_seconds)
            run.source.close()

    def test_it_may_be_closed_before_its_start(self) -> None:
        """There is nothing to stop then, and it raises nothing."""
        self.make_source().close()

    # -- What they share

    @contextmanager
    def _running(self, past: Sequence[TradeEvent] = ()) -> Iterator[Run]:
        if self._not_started:
            raise SkipTest(f"not run, since {self._not_started}")
        try:
            run = Run(self.make_source(), self.seconds, past, self.slowness)
        except NotStarted as exc:
            self._not_started = str(exc)
            raise
        try:
            yield run
        except BaseException:
            # What the check has found comes first.
            with suppress(AssertionError):
                run.close()
            raise
        run.close()
        run.check()

    @contextmanager
    def _downloading(self) -> Iterator[tuple[Run, DownloadRequest]]:
        with self._running() as run:
            if Kind.DOWNLOAD not in run.source.kinds:
                raise SkipTest("this source has no downloads")
            if self.good_download is None:
                raise AssertionError("the source has downloads, and the subclass names none that succeeds")
            yield run, self.good_download

    @contextmanager
    def _trading(self) -> Iterator[Run]:
        with self._running() as run:
            if Kind.TRADE not in run.source.kinds:
                raise SkipTest("this source has no trade events")
            # A recording is played once there is a subscription.
            run.serve(self._topics()[0])
            self.trade(run.source)
            run.until(lambda: any(event == "trade" for _, event, _ in run.sink.trades), "no fill has come")
            yield run

    def _more(self, run: Run, count: int) -> bool:
        return run.sink.total() > count

    def _topics(self) -> list[Topic]:
        return [Topic(topic) for topic in self.topics]

    def _push_until(self, run: Run, topic: Topic, count: int) -> None:
        """Wait until more than `count` messages of `topic` have come."""
        if run.sink.count(topic) <= count:
            self.push(run.source, topic)
        run.until(lambda: run.sink.count(topic) > count, f"nothing is published on {topic}")

    def _ended(self, run: Run, topic: Topic) -> None:
        run.until(lambda: any("status" in body for body in run.sink.bodies.get(topic, ())), f"{topic} does not end")

    def _check_history(self, run: Run, number: int, topic: Topic, published: object) -> None:
        answers = run.sink.histories
        require(
            run.sink.wait(lambda: number in answers, max(HISTORY_SECONDS, self.seconds)),
            f"the history of {topic} is not answered within {HISTORY_SECONDS:g} s",
        )
        run.sink.wait(lambda: len(answers[number]) > 1, self.quiet_seconds)
        require(len(answers[number]) == 1, f"the history of {topic} is answered {len(answers[number])} times")
        bodies, from_ms = answers[number][0]
        if isinstance(bodies, str):
            return
        parts = parse_topic(topic)
        for body in bodies:
            said = records.fault(parts, body, int(from_ms) + 86_400_000)
            require(not said, f"the history of {topic}: {said}")
        moments = [moment for body in bodies for moment in records.times(body)]
        require(moments == sorted(moments), f"the history of {topic} is not in order, oldest first")
        require(all(moment >= int(from_ms) for moment in moments), f"the history of {topic} begins before from_ms")
        require(published in bodies, f"the history of {topic} lacks a message that was published before")
