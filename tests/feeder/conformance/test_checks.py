"""A test of the tests: a source that keeps the protocol passes each check, and each rule that it breaks fails one."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar
from unittest import SkipTest

import pytest

from feeder.conformance import SourceConformance, run
from feeder.conformance import __main__ as command
from feeder.conformance import checks as checks_module
from feeder.source import DownloadRequest, Health, Sink, Source, by_kind
from qmt_bridge.errors import ErrorCode, Refused
from qmt_bridge.wire.messages import AccountState
from qmt_bridge.wire.moments import midnight
from qmt_bridge.wire.topics import FormulaSpec, Kind, Topic, TopicParts, formula_topic, parse_topic
from tests.support.waiting import SLOWNESS

ACCOUNT = "1000000365"
MA = formula_topic(FormulaSpec("MA", "600519.SH"))
TOPICS = ("quote/600519.SH/tick/", "whole/SH/", "l2/600519.SH/0/", MA)
REQUEST = DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")


class Model:
    """A source of each kind that keeps the protocol; one thread does all, and each step is a method to spoil."""

    protocol, name, simulated, lossless = 1, "model", True, False
    kinds = frozenset(Kind) - {Kind.STATUS}
    sink: Sink

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.topics: dict[Topic, TopicParts] = {}
        self.jobs: dict[Topic, list[dict[str, Any]]] = {}
        self.published: list[dict[str, Any]] = []
        self.filled: set[str] = set()
        self.running = True
        self.thread = threading.Thread(target=self.work, name="model", daemon=True)

    def start(self, sink: Sink) -> None:
        self.sink = sink
        self.filled |= {str(event.data["traded_id"]) for _, event in sink.past_trades(0)}
        self.thread.start()

    def work(self) -> None:
        self.sink.set_state("up")
        self.sink.set_accounts([AccountState(self.shown(), "STOCK", "up")])
        while self.running:
            with suppress(queue.Empty):
                self.calls.get(timeout=0.002)()
            for topic, parts in list(self.topics.items()):
                self.sink.publish(topic, self.body(parts), self.received_ns())
            for job in list(self.jobs):
                self.go_on(job)

    def subscribe(self, topic: Topic, parts: TopicParts) -> None:
        if parts.name == "999999.SH":
            raise Refused(*self.refusal())
        if parts.name == "888888.SH":
            self.calls.put(lambda: self.sink.refuse(topic, *self.refusal()))
            return
        self.calls.put(lambda: self.topics.setdefault(topic, parts))

    def unsubscribe(self, topic: Topic, parts: TopicParts) -> None:
        self.calls.put(lambda: self.topics.pop(topic, None))
        self.calls.put(lambda: self.cancel(topic))

    def download(self, topic: Topic, request: DownloadRequest) -> None:
        if request.period != "1d":
            raise Refused("unsupported_period", "no such history")
        self.calls.put(lambda: self.jobs.setdefault(topic, self.steps(request)))

    def history(self, number: int, topic: Topic, parts: TopicParts, day_ms: int) -> None:
        self.calls.put(lambda: self.answer(number))

    def upstream(self) -> int:
        return len(self.topics)

    def hung(self) -> str | None:
        return None

    def health(self) -> Health:
        return Health()

    def capabilities(self) -> Mapping[str, str]:
        return by_kind(self.kinds)

    def close(self) -> None:
        self.running = False
        if self.thread.is_alive():
            self.thread.join(2)

    # What mutants spoil

    def shown(self) -> str:
        return "******0365"

    def received_ns(self) -> int:
        return time.time_ns()

    def refusal(self) -> tuple[ErrorCode, str]:
        return "unknown_symbol", "there is no such code"

    def moment(self) -> Any:
        return time.time_ns() // 1_000_000

    def body(self, parts: TopicParts) -> Any:
        record = {"time": self.moment(), "lastPrice": 10.0}
        if parts.kind is Kind.WHOLE:
            return {"600519.SH": record}
        if parts.kind is Kind.FORMULA:
            data = {"dbt": 0, "timelist": [record["time"]], "outputs": {"MA1": [10.0]}}
            return {"formula_name": "MA", "stock_code": "600519.SH", "data": data}
        if parts.kind is Kind.QUOTE:
            self.published.append({parts.name: [record]})
        return {parts.name: [record]}

    def steps(self, request: DownloadRequest) -> list[dict[str, Any]]:
        total = len(request.stocks)
        told = [{"finished": n, "total": total, "stockcode": code} for n, code in enumerate(request.stocks, 1)]
        return [*told, {"status": "done"}]

    def go_on(self, job: Topic) -> None:
        self.sink.publish(job, self.jobs[job].pop(0), time.time_ns())
        if not self.jobs[job]:
            del self.jobs[job]

    def cancel(self, job: Topic) -> None:
        if self.jobs.pop(job, None):
            end = {"status": "error", "code": "upstream_unavailable", "error": "cancelled", "failed": {}}
            self.sink.publish(job, end, time.time_ns())

    def answer(self, number: int) -> None:
        self.sink.give_history(number, self.published, midnight(self.moment()))

    def break_off(self) -> None:
        self.calls.put(lambda: self.sink.set_state("down", "no connection"))

    def mend(self) -> None:
        self.calls.put(lambda: self.sink.set_state("up", data_lost=True))

    def fill(self, traded_id: str) -> None:
        if traded_id not in self.filled:
            self.filled.add(traded_id)
            self.send(traded_id)

    def send(self, traded_id: str) -> None:
        data = {"account_id": ACCOUNT, "traded_id": traded_id, "traded_volume": 100}
        self.sink.publish_trade(ACCOUNT, "trade", data, time.time_ns())


class ModelConformance(SourceConformance):
    topics = TOPICS
    refused: ClassVar = {"quote/999999.SH/tick/": "unknown_symbol", "quote/888888.SH/tick/": "unknown_symbol"}
    good_download = REQUEST
    bad_download = DownloadRequest(("600519.SH",), "1h", "", "")
    seconds = 10.0 * SLOWNESS
    quiet_seconds = 0.1
    made: type[Model] = Model

    def make_source(self) -> Source:
        return self.made()

    def break_session(self, source: Source) -> None:
        assert isinstance(source, Model)
        source.break_off()

    def mend_session(self, source: Source) -> None:
        assert isinstance(source, Model)
        source.mend()

    def trade(self, source: Source) -> None:
        assert isinstance(source, Model)
        source.calls.put(lambda: source.fill("T1"))


class TestModel(ModelConformance):
    """The model itself."""


def sleep(*_: object) -> None:
    time.sleep(1.5 * SLOWNESS)


def fail(*_: object) -> None:
    raise ValueError("odd")


def spoiled(**methods: object) -> type[Model]:
    return type("Spoiled", (Model,), methods)


def no_body(change: Callable[[Any], Any], kind: Kind = Kind.QUOTE) -> type[Model]:
    """Return a source whose bodies of one kind are changed."""

    def body(self: Model, parts: TopicParts) -> Any:
        made = Model.body(self, parts)
        return change(made) if parts.kind is kind else made

    return spoiled(body=body)


def with_steps(*steps: dict[str, Any]) -> type[Model]:
    return spoiled(steps=lambda self, request: [dict(step) for step in steps])


def make_thread(self: Model) -> None:
    Model.__init__(self)
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, args=(2.0,), name="too-early", daemon=True)
    thread.start()
    self.close = gate.set  # type: ignore[method-assign]


def leave_thread(self: Model) -> None:
    Model.close(self)
    threading.Thread(target=time.sleep, args=(3.0,), name="left-behind", daemon=True).start()


def publish_late(self: Model) -> None:
    Model.close(self)
    self.sink.publish(Topic(TOPICS[0]), self.body(parse_topic(TOPICS[0])), time.time_ns())


def stay(self: Model, topic: Topic, parts: TopicParts) -> None:
    """Do nothing at the end of a subscription."""


def once(self: Model, topic: Topic, parts: TopicParts) -> None:
    if topic in self.filled:
        raise ValueError("subscribed already")
    self.filled.add(topic)
    Model.subscribe(self, topic, parts)


def one_more(self: Model, topic: Topic, parts: TopicParts) -> None:
    Model.subscribe(self, Topic("quote/000002.SZ/tick/"), parse_topic("quote/000002.SZ/tick/"))
    Model.subscribe(self, topic, parts)


def remove(self: Model, topic: Topic, parts: TopicParts) -> None:
    del self.topics[topic]


def never_again(self: Model, topic: Topic, parts: TopicParts) -> None:
    if topic not in self.filled:
        self.filled.add(topic)
        Model.subscribe(self, topic, parts)


def forget(self: Model, sink: Sink) -> None:
    """Do not look at what the journal has."""
    self.sink = sink
    self.thread.start()


def twice(self: Model, number: int) -> None:
    Model.answer(self, number)
    Model.answer(self, number)


def one_ms_later(body: Any) -> Any:
    return {code: [record | {"time": record["time"] + 1} for record in records] for code, records in body.items()}


def with_history(change: Callable[[list[Any]], list[Any]], later: int = 0) -> type[Model]:
    def answer(self: Model, number: int) -> None:
        self.sink.give_history(number, change(self.published), midnight(self.moment()) + later)

    return spoiled(answer=answer)


PROGRESS = {"finished": 1, "total": 2, "stockcode": "600519.SH"}
DONE = {"status": "done"}
AHEAD = 90_000_000
IN_VAIN = (
    *("has not returned", " waits", "neither accepted", "not published", "upstream is not 0", "still come"),
    *("is not refused", "does not end", "not answered", "no other state", "not up again", "no fill has come"),
)
BEGAN = time.time_ns() // 1_000_000

MUTANTS: list[tuple[str, type[Model], str]] = [
    ("it_is_a_source", spoiled(protocol=0), "protocol is 0"),
    ("it_is_a_source", spoiled(hung=None), "no method hung"),
    ("it_is_a_source", spoiled(kinds=frozenset((Kind.QUOTE,))), "the kinds to subscribe are"),
    ("it_is_a_source", spoiled(__init__=make_thread), "the constructor starts threads, and start does: too-early"),
    ("its_session_is_up_after_the_start", spoiled(work=lambda self: None), "the state is not up"),
    ("its_session_is_up_after_the_start", spoiled(start=lambda self, sink: sink.set_state("on")), "a state is one of"),
    ("its_session_is_up_after_the_start", spoiled(shown=lambda self: ACCOUNT), "shows its number"),
    ("a_topic_is_served_and_published", spoiled(subscribe=sleep), "subscribe has not returned within"),
    ("a_topic_is_served_and_published", spoiled(subscribe=fail), "subscribe raises ValueError: odd"),
    ("a_topic_is_served_and_published", spoiled(subscribe=stay), "neither accepted nor refused"),
    ("a_topic_is_served_and_published", spoiled(received_ns=lambda self: 5), "received_ns is the time"),
    ("a_topic_is_served_and_published", spoiled(received_ns=lambda self: time.time()), "received_ns is the time"),
    ("a_topic_is_served_and_published", spoiled(moment=lambda self: int(time.time())), "in ms since 1970"),
    ("a_topic_is_served_and_published", spoiled(moment=lambda self: Model.moment(self) + AHEAD), "in ms since 1970"),
    ("a_topic_is_served_and_published", spoiled(moment=lambda self: "09:30:00"), "is a number, not '09:30:00'"),
    ("a_topic_is_served_and_published", spoiled(moment=lambda self: 2 * BEGAN - Model.moment(self)), "is older"),
    ("a_topic_is_served_and_published", no_body(lambda body: [body]), "a body is an object, not list"),
    ("a_topic_is_served_and_published", no_body(lambda body: object()), "not JSON serializable: object"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600518.SH": body["600519.SH"]}), "the code is 600519"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600519.SH": body["600519.SH"][0]}), "no array of rec"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600519.SH": []}), "no array of records"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600519.SH": [5]}), "a record is an object, not int"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"1.SZ": body["600519.SH"]}, Kind.WHOLE), "'1.SZ'"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"000001.SZ": body["600519.SH"]}, Kind.WHOLE), "to SH"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600519.SH": [5]}, Kind.WHOLE), "not list"),
    ("a_topic_is_served_and_published", no_body(lambda body: {"600519.SH": [5]}, Kind.L2), "a record is an object"),
    ("a_topic_is_served_and_published", no_body(lambda body: body | {"stock_code": ""}, Kind.FORMULA), "of the topic"),
    ("a_topic_is_served_and_published", no_body(lambda body: body | {"data": {}}, Kind.FORMULA), "no timelist"),
    ("a_topic_is_served_and_published", spoiled(subscribe=one_more), "a message has come, and it was never subscribed"),
    ("a_topic_that_comes_back_is_published_again", spoiled(subscribe=never_again), "neither accepted nor refused"),
    ("calls_can_be_repeated", spoiled(subscribe=once), "subscribe raises ValueError: subscribed already"),
    ("calls_can_be_repeated", spoiled(unsubscribe=remove), "unsubscribe raises KeyError"),
    ("calls_can_be_repeated", spoiled(upstream=lambda self: 1), "upstream is not 0"),
    (
        "nothing_is_published_after_unsubscribe",
        spoiled(unsubscribe=stay),
        "messages still come 1.2 s after unsubscribe",
    ),
    ("nothing_is_published_after_unsubscribe", spoiled(unsubscribe=sleep), "unsubscribe has not returned"),
    ("what_it_cannot_serve_is_refused", spoiled(refusal=lambda self: ("gone", "no")), "'gone', which is no error code"),
    (
        "what_it_cannot_serve_is_refused",
        spoiled(refusal=lambda self: ("internal", "no")),
        "with internal, and not with",
    ),
    ("what_it_cannot_serve_is_refused", spoiled(refusal=lambda self: ("internal", "")), "refuses without a reason"),
    ("what_it_cannot_serve_is_refused", spoiled(subscribe=stay), "is not refused"),
    ("a_download_is_told_until_its_end", with_steps(PROGRESS), "does not end"),
    ("a_download_is_told_until_its_end", with_steps(DONE, PROGRESS), "follows the end of the download"),
    ("a_download_is_told_until_its_end", with_steps(DONE, DONE), "follows the end of the download"),
    ("a_download_is_told_until_its_end", with_steps(PROGRESS | {"finished": 3}, DONE), "3 of 2"),
    ("a_download_is_told_until_its_end", with_steps({"status": "ok"}, DONE), "the status is done or error, not 'ok'"),
    (
        "a_download_is_told_until_its_end",
        with_steps({"status": "error", "code": "x", "error": "y"}, DONE),
        "no error code",
    ),
    ("a_download_is_told_until_its_end", spoiled(download=sleep), "download has not returned"),
    ("a_download_that_is_cancelled_ends", spoiled(cancel=lambda *_: None, go_on=lambda *_: None), "does not end"),
    ("an_impossible_download_is_refused", spoiled(download=lambda self, topic, request: None), "does not end"),
    ("a_history_is_answered_once", spoiled(answer=lambda self, number: None), "is not answered within"),
    ("a_history_is_answered_once", spoiled(history=sleep), "history has not returned"),
    ("a_history_is_answered_once", spoiled(answer=twice), "is answered 2 times"),
    (
        "a_history_is_answered_once",
        with_history(lambda past: [one_ms_later(past[-1]), *past]),
        "is not in order, oldest first",
    ),
    ("a_history_is_answered_once", with_history(lambda past: past[:0]), "lacks a message that was published before"),
    ("a_history_is_answered_once", with_history(lambda past: [{"1": past}]), "the code is 600519.SH"),
    ("a_history_is_answered_once", with_history(lambda past: past, 86_400_000), "begins before from_ms"),
    ("a_break_is_told_with_the_loss_of_data", spoiled(break_off=lambda self: None), "no other state is told"),
    ("a_break_is_told_with_the_loss_of_data", spoiled(mend=lambda self: None), "the state is not up again"),
    ("a_break_is_told_with_the_loss_of_data", spoiled(mend=lambda self: self.sink.set_state("up")), "says data_lost"),
    ("a_break_is_told_with_the_loss_of_data", spoiled(break_off=lambda self: self.sink.set_state("down")), "no reason"),
    ("other_threads_may_ask_it", spoiled(hung=lambda self: "it hangs"), "it says that it hangs"),
    ("other_threads_may_ask_it", spoiled(hung=lambda self: 5), "neither None nor a text"),
    ("other_threads_may_ask_it", spoiled(hung=sleep), "hung waits"),
    ("other_threads_may_ask_it", spoiled(health=lambda self: {}), "which is no Health"),
    ("other_threads_may_ask_it", spoiled(upstream=lambda self: -1), "which is no number"),
    ("other_threads_may_ask_it", spoiled(capabilities=lambda self: {"quote": True}), "capabilities are texts"),
    ("other_threads_may_ask_it", spoiled(capabilities=fail), "capabilities raises ValueError"),
    (
        "a_trade_event_has_its_form",
        spoiled(send=lambda self, of: self.sink.publish_trade(ACCOUNT, "x", {}, time.time_ns())),
        "'x' is no type of trade events",
    ),
    ("a_trade_event_has_its_form", spoiled(fill=lambda self, of: None), "no fill has come"),
    ("a_fill_is_published_once", spoiled(fill=Model.send), "the fill 'T1' has come twice"),
    ("a_fill_is_published_once", spoiled(start=forget), "published again after a restart: ['T1']"),
    ("it_closes_in_time_and_leaves_nothing", spoiled(close=sleep), "close has not returned within"),
    ("it_closes_in_time_and_leaves_nothing", spoiled(close=leave_thread), "threads are left after close: left-behind"),
    ("it_closes_in_time_and_leaves_nothing", spoiled(close=publish_late), "a message has come after close"),
    ("it_may_be_closed_before_its_start", spoiled(close=fail), "odd"),
]


@pytest.mark.parametrize(
    ("check", "made", "said"), [pytest.param(*each, id=f"{number}-{each[0]}") for number, each in enumerate(MUTANTS)]
)
def test_a_source_that_breaks_a_rule_fails(
    check: str, made: type[Model], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What has to come is waited for in vain by those that say so, and by no other.
    waits = any(text in said for text in IN_VAIN)
    monkeypatch.setattr(run, "AT_ONCE", 0.6 if waits else 10.0)
    monkeypatch.setattr(run, "START_SECONDS", 0.6 if said == "the state is not up" else 60.0)
    monkeypatch.setattr(run, "CLOSE_SECONDS", 0.0 if waits else 10.0)
    monkeypatch.setattr(run, "END_SECONDS", 0.2 if "left" in said else 10.0)
    monkeypatch.setattr(checks_module, "HISTORY_SECONDS", 0.3)
    checked = type("Checked", (ModelConformance,), {"made": made, "seconds": 1.2 if waits else 20.0})()
    with pytest.raises((AssertionError, ValueError)) as caught:
        getattr(checked, f"test_{check}")()
    assert not isinstance(caught.value, SkipTest)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("method", "said"),
    [("start", "start has not returned within 2 s"), ("work", "the state is not up within 2 s")],
)
def test_after_a_start_that_hangs_no_check_starts_again(
    method: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "START_SECONDS", 2.0)
    monkeypatch.setattr(run, "AT_ONCE", 0.2)
    starts = []

    def hang(self: Model, *_: object) -> None:
        starts.append(self)
        threading.Event().wait()

    checked = type("Checked", (ModelConformance,), {"made": spoiled(**{method: hang}, close=lambda _: None)})()
    command.run(checked)
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert told["its session is up after the start"] == f"FAILED: {said}"
    assert told["it is a source"] == told["it may be closed before its start"] == "ok"
    assert told["a topic is served and published"] == f"skipped: not run, since {said}"
    assert len(starts) == 1


def test_each_check_has_a_source_that_fails_it() -> None:
    names = {name.removeprefix("test_") for name in vars(SourceConformance) if name.startswith("test_")}
    assert {check for check, *_ in MUTANTS} == names
