"""What is wanted of pushers and what they answer: topics, downloads, histories. Real sockets, a real feeder."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feeder.push import pushers, source
from feeder.push.message import Hello
from feeder.source import DownloadRequest
from qmt_bridge.errors import Refused
from qmt_bridge.wire.topics import FormulaSpec, Kind, Topic, TopicParts, formula_topic, parse_topic
from tests.support.push_feeder import QUOTE, Desk, desk
from tests.support.pusher import CODE, SPOKEN
from tests.support.rig import DEADLINE

FORMULA = formula_topic(FormulaSpec("MA", CODE, params={"N1": 5}))
L2 = "l2/600519.SH/10/"
WHOLE = "whole/SH/"
EVERY = ["quote", "whole", "l2", "formula", "download", "trade"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as found:
        yield found


def spelled(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return message["type"], message["topic"]


def test_demand_before_the_hello_is_told(running: Desk) -> None:
    consumer = running.consumer(QUOTE, L2, FORMULA)
    assert consumer.state_of(QUOTE).state == "pending"
    pusher = running.pusher(kinds=EVERY)
    told = sorted((spelled(pusher.until("subscribe")) for _ in range(3)), key=str)
    formula = {"kind": "formula", "formula_name": "MA", "stock_code": CODE, "period": "1d", "count": -1}
    assert told == [
        ("subscribe", {**formula, "dividend_type": "none", "params": {"N1": 5}}),
        ("subscribe", {"kind": "l2", "code": CODE, "gear_num": 10}),
        ("subscribe", SPOKEN),
    ]


def test_later_demand_comes_and_goes(tmp_path: Path) -> None:
    with desk(tmp_path, grace=0.0) as running:
        pusher = running.pusher()
        consumer = running.consumer(QUOTE)
        assert spelled(pusher.until("subscribe")) == ("subscribe", SPOKEN)
        pusher.push({"time": 1})
        consumer.body()
        assert running.push.upstream() == 1
        consumer.leave(QUOTE)
        assert spelled(pusher.until("unsubscribe")) == ("unsubscribe", SPOKEN)
        # A record that was under way is no fault.
        pusher.push({"time": 2})
        pusher.say({"type": "what"})
        assert pusher.until("error")["line"] == 4


def test_a_topic_is_accepted_and_refused(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    pusher.say({"type": "accept", "topic": SPOKEN})
    consumer.until(lambda: consumer.state_of(QUOTE).state == "live")
    pusher.say({"type": "refuse", "topic": SPOKEN, "code": "not_entitled", "error": "no level 1"})
    consumer.until(lambda: consumer.state_of(QUOTE).state == "refused")
    answer = consumer.state_of(QUOTE)
    assert (answer.code, answer.error) == ("not_entitled", "no level 1")
    # It is told again for the next consumer, and data revives it.
    consumer.leave(QUOTE)
    assert spelled(pusher.until("unsubscribe")) == ("unsubscribe", SPOKEN)
    other = running.consumer(QUOTE)
    assert spelled(pusher.until("subscribe")) == ("subscribe", SPOKEN)
    pusher.push({"time": 1})
    assert other.body()


def test_an_answer_that_was_not_asked_for_is_left_out(running: Desk) -> None:
    answered: list[tuple[object, ...]] = []
    running.push._sink.accept = lambda *answer: answered.append(answer)  # type: ignore[method-assign]
    running.push._sink.refuse = lambda *answer: answered.append(answer)  # type: ignore[method-assign]
    pusher = running.pusher()
    pusher.say(
        {"type": "accept", "topic": SPOKEN},
        {"type": "refuse", "topic": SPOKEN, "code": "not_entitled", "error": "no level 1"},
        {"type": "refuse", "id": 5, "code": "upstream_refused", "error": "no ticks"},
        {"type": "nonsense"},
    )
    assert pusher.until("error")["line"] == 5
    assert answered == []


def test_a_kind_that_no_pusher_serves_is_refused(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "DECIDE_SECONDS", 0.05)
    consumer = running.consumer(L2)
    running.pusher(kinds=["quote"])
    consumer.until(lambda: consumer.state_of(L2).state == "refused")
    assert consumer.state_of(L2).code == "upstream_refused"
    # One that comes later is told of it all the same.
    late = running.pusher(name="late", kinds=["l2"])
    assert late.until("subscribe")["topic"]["kind"] == "l2"


def test_another_pusher_is_waited_for_after_a_hello(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "DECIDE_SECONDS", 600.0)
    pusher = running.pusher(kinds=["quote"])
    consumer = running.consumer(L2)
    consumer.until(lambda: consumer.state_of(L2).state == "pending")
    consumer.want(QUOTE)
    # Calls are made in their order: the one for the other topic was made before.
    pusher.until("subscribe")
    assert consumer.state_of(L2).state == "pending"
    late = running.pusher(name="late", kinds=["l2"])
    assert late.until("subscribe")["topic"]["kind"] == "l2"


def test_topics_of_a_pusher_that_says_bye_are_refused(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "DECIDE_SECONDS", 600.0)
    consumer = running.consumer(L2)
    running.pusher(kinds=["quote"])
    leaving = running.pusher(name="leaving", kinds=["l2"])
    leaving.until("subscribe")
    leaving.say({"type": "bye"})
    consumer.until(lambda: consumer.state_of(L2).state == "refused")


def test_what_no_name_may_serve_is_refused(tmp_path: Path) -> None:
    with desk(tmp_path, pushers=("ctp:quote:SF",)) as running:
        consumer = running.consumer("quote/rb2510.SF/tick/", QUOTE)
        consumer.until(lambda: consumer.state_of(QUOTE).state == "refused")
        assert consumer.state_of("quote/rb2510.SF/tick/").state == "pending"


def test_demand_of_two_pushers_goes_to_each(running: Desk) -> None:
    shanghai = running.pusher(name="sh", markets=["SH"])
    shenzhen = running.pusher(name="sz", markets=["SZ"])
    consumer = running.consumer(QUOTE, "quote/000001.SZ/1m/")
    assert shanghai.until("subscribe")["topic"]["code"] == CODE
    topic = shenzhen.until("subscribe")["topic"]
    assert topic == {"kind": "quote", "code": "000001.SZ", "period": "1m"}
    # Another's topic is refused by line, and costs that line only.
    shenzhen.push({"time": 1})
    assert shenzhen.until("error")["code"] == "not_wanted"
    shenzhen.push({"time": 2}, topic)
    assert consumer.body() == ("quote/000001.SZ/1m/", {"000001.SZ": [{"time": 2}]})


def test_a_download_runs_ends_and_is_cancelled(running: Desk) -> None:
    topic = Topic("download/5f2c-1/")
    request = DownloadRequest(("000001.SZ",), "1d", "", "")
    with pytest.raises(Refused):
        running.push.download(topic, request)
    pusher = running.pusher(kinds=["download"])
    bodies: list[object] = []
    running.push._sink.publish = lambda topic, body, ns: bodies.append(body)  # type: ignore[method-assign]
    running.push.download(topic, request)
    told = pusher.until("download")
    spoken = {"kind": "download", "job": "5f2c-1"}
    assert told == {"type": "download", "topic": spoken, "stocks": ["000001.SZ"], "period": "1d"} | {
        "start_time": "",
        "end_time": "",
    }
    pusher.push({"finished": 1, "total": 1}, spoken)
    pusher.push({"status": "done"}, spoken)
    running.consumer().until(lambda: len(bodies) == 2)
    # After its end nothing of it is published, and a cancel has nothing to end.
    pusher.push({"finished": 1, "total": 1}, spoken)
    pusher.say({"type": "nonsense"})
    pusher.until("error")
    running.push.download(topic, request)
    pusher.until("download")
    running.push.unsubscribe(topic, TopicParts(Kind.DOWNLOAD, "5f2c-1", ""))
    assert pusher.until("unsubscribe")["topic"] == spoken
    running.consumer().until(lambda: len(bodies) == 3)
    assert isinstance(bodies[2], dict)
    assert bodies[2]["error"] == "the download was cancelled"


def test_a_download_ends_with_its_pusher(running: Desk) -> None:
    bodies: list[Any] = []
    running.push._sink.publish = lambda topic, body, ns: bodies.append(body)  # type: ignore[method-assign]
    pusher = running.pusher(kinds=["download"])
    running.push.download(Topic("download/1/"), DownloadRequest(("000001.SZ",), "1d", "", ""))
    pusher.until("download")
    pusher.close()
    running.consumer().until(lambda: bodies)
    assert (bodies[0]["status"], bodies[0]["code"]) == ("error", "upstream_unavailable")


class Answers:
    """What the source answers to questions for histories."""

    def __init__(self, running: Desk) -> None:
        self.given: list[tuple[int, list[bytes], int]] = []
        self.refused: list[tuple[int, str, str]] = []
        sink = running.push._sink
        sink.give_history = lambda number, bodies, from_ms: self.given.append(  # type: ignore[method-assign]
            (number, [bytes(body) for body in bodies], from_ms)  # type: ignore[call-overload]
        )
        sink.refuse_history = lambda *answer: self.refused.append(answer)  # type: ignore[method-assign]


def test_a_history_comes_in_parts(running: Desk) -> None:
    answers = Answers(running)
    consumer = running.consumer(QUOTE)
    pusher = running.pusher(history=True)
    pusher.until("subscribe")
    # Noon in Shanghai on 2026-11-30.
    running.push.history(3, Topic(QUOTE), parse_topic(QUOTE), 1796011200000)
    asked = pusher.until("history")
    assert asked == {"type": "history", "id": 3, "topic": SPOKEN, "from": 1795968000000}
    pusher.say(
        {"type": "history", "id": 3, "data": [{"time": 1}], "more": True},
        {"type": "history", "id": 4, "data": []},
        {"type": "history", "id": 3, "data": [{"time": 2}]},
    )
    consumer.until(lambda: answers.given)
    assert answers.given == [(3, [b'{"600519.SH":[{"time":1}]}', b'{"600519.SH":[{"time":2}]}'], 1795968000000)]


@pytest.mark.parametrize("how", ["refusal", "death", "too-much", "too-late"])
def test_a_history_that_is_not_found(running: Desk, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "HISTORY_SECONDS", 0.0 if how == "too-late" else 60.0)
    monkeypatch.setattr("feeder.push.pusher.HISTORY_BYTES", 40)
    answers = Answers(running)
    consumer = running.consumer(QUOTE)
    pusher = running.pusher(history=True)
    pusher.until("subscribe")
    running.push.history(3, Topic(QUOTE), parse_topic(QUOTE), 0)
    pusher.until("history")
    if how == "refusal":
        pusher.say({"type": "refuse", "id": 3, "code": "upstream_refused", "error": "no ticks"})
    elif how == "death":
        pusher.close()
    elif how == "too-much":
        pusher.say({"type": "history", "id": 3, "data": [{"time": 1}] * 10})
    consumer.until(lambda: answers.refused)
    assert answers.refused[0][0] == 3
    assert not answers.given


def test_a_pusher_without_history_is_not_asked(running: Desk) -> None:
    answers = Answers(running)
    running.consumer(QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    running.push.history(3, Topic(QUOTE), parse_topic(QUOTE), 0)
    running.push.history(4, Topic("quote/000001.SZ/tick/"), parse_topic("quote/000001.SZ/tick/"), 0)
    running.consumer().until(lambda: len(answers.refused) == 2)
    assert [code for _, code, _ in answers.refused] == ["upstream_refused", "upstream_unavailable"]


def test_capabilities_say_which_kinds_are_served(running: Desk) -> None:
    running.pusher(kinds=["quote"])
    found = running.push.capabilities()
    assert found["quote"] == ""
    assert found["l2"] == "no pusher that is connected serves it"


def test_a_pusher_that_does_not_read_is_cut_off(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.push.connection.UNSENT_BYTES", 64 * 1024)
    # Accepted connections inherit it: the system holds little of what is not read.
    running.push._listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    consumer = running.consumer()
    running.pusher(kinds=["formula"], receive_bytes=4096)
    for number in range(60):
        consumer.want(formula_topic(FormulaSpec("MA", CODE, params={"N": "x" * 3500, "M": number})))
    consumer.status(state="down", reason="pusher_gone")


class Noted:
    """A connection of a pusher that keeps what is sent, and a sink that keeps what is refused."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.refused: list[Topic] = []
        self.asked: list[int] = []

    def send(self, lines: bytes) -> None:
        self.lines += lines.splitlines()

    def refuse(self, topic: Topic, *_: str) -> None:
        self.refused.append(topic)

    def refuse_history(self, number: int, *_: str) -> None:
        self.asked.append(number)

    def ignore(self, *_: object, **__: object) -> None:
        """What these tests do not look at."""

    def silent(self, _: float) -> float:
        return 0.0

    welcomed = end = set_state = set_accounts = ignore

    def told(self) -> list[tuple[str, str]]:
        """Return type and code of each line about a topic."""
        read = [json.loads(each) for each in self.lines]
        return [(each["type"], each["topic"]["code"]) for each in read if "topic" in each]


CODES = ["600000.SH", "600001.SH", "600002.SH", "600003.SH"]


def quote_of(code: str) -> tuple[Topic, TopicParts]:
    topic = Topic(f"quote/{code}/tick/")
    return topic, parse_topic(topic)


async def turns() -> None:
    for _ in range(2 * len(CODES)):
        await asyncio.sleep(0)


async def admitted(monkeypatch: pytest.MonkeyPatch, *, history: bool = False) -> tuple[pushers.Pushers, Noted]:
    """Return pushers of which one has said hello, and was told the first topic of four."""
    monkeypatch.setattr(pushers, "DEMAND_TOPICS", 1)
    noted: Any = Noted()
    found = pushers.Pushers(noted, {}, "", 1)
    found._loop = asyncio.get_running_loop()
    for code in CODES:
        found.subscribe(*quote_of(code))
    found.take(noted, Hello(protocol=1, name="desk", kinds=["quote"], history=history))
    assert noted.told() == [("subscribe", CODES[0])]
    return found, noted


def test_a_large_demand_is_told_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        _, noted = await admitted(monkeypatch)
        await asyncio.sleep(0)
        assert noted.told() == [("subscribe", code) for code in CODES[:2]]
        await turns()
        assert noted.told() == [("subscribe", code) for code in CODES]

    asyncio.run(go())


def test_changes_between_two_pieces_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        found, noted = await admitted(monkeypatch)
        # One that was told is left; one that was not; and one that was not comes back.
        found.unsubscribe(*quote_of(CODES[0]))
        found.unsubscribe(*quote_of(CODES[1]))
        found.unsubscribe(*quote_of(CODES[2]))
        found.subscribe(*quote_of(CODES[2]))
        await turns()
        assert noted.told() == [
            ("subscribe", CODES[0]),
            ("unsubscribe", CODES[0]),
            ("subscribe", CODES[2]),
            ("subscribe", CODES[3]),
        ]

    asyncio.run(go())


def test_a_pusher_that_is_gone_is_told_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        found, noted = await admitted(monkeypatch)
        found.lost(noted)
        await turns()
        assert noted.told() == [("subscribe", CODES[0])]
        assert found.upstream == 0

    asyncio.run(go())


def test_what_is_told_later_is_not_refused_as_unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        found, noted = await admitted(monkeypatch)
        unserved, parts = Topic(L2), parse_topic(L2)
        found.subscribe(unserved, parts)
        # All of the demand is looked at while three topics are untold.
        monkeypatch.setattr(pushers, "DEMAND_TOPICS", 100)
        found._decide()
        await turns()
        assert noted.refused == [unserved]

    asyncio.run(go())


def test_a_history_is_asked_after_its_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> None:
        found, noted = await admitted(monkeypatch, history=True)
        topic, parts = quote_of(CODES[3])
        found.history(7, topic, parts, 0)
        assert noted.told() == [("subscribe", CODES[0]), ("subscribe", CODES[3]), ("history", CODES[3])]
        await turns()
        assert noted.told().count(("subscribe", CODES[3])) == 1
        assert noted.asked == []

    asyncio.run(go())


def test_many_calls_of_the_feeder_are_made_in_turns(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "TURN_CALLS", 1)
    turns_done: list[int] = []
    loop, done = running.push._loop, threading.Event()

    def hand_over() -> None:
        # On the loop, so that all are there before the first one is made.
        running.push._hand_over(lambda: loop.call_soon(turns_done.append, 0))
        running.push._hand_over(lambda: turns_done.append(1))
        running.push._hand_over(done.set)

    loop.call_soon_threadsafe(hand_over)
    assert done.wait(DEADLINE)
    assert turns_done == [0, 1]
