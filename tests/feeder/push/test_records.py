"""Records of pushers on the wire, lines that are refused, and the state of pushers. Real sockets, a real feeder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feeder.push import pushers, snapshots
from tests.support.push_feeder import QUOTE, Desk, desk
from tests.support.pusher import ACCOUNT, CODE, KEY, SPOKEN
from tests.support.waiting import wait_for

WHOLE = "whole/SH/"
MARKET = {"kind": "whole", "code": "SH"}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as found:
        yield found


@pytest.mark.parametrize(
    ("topic", "spoken", "data", "body"),
    [
        pytest.param(QUOTE, SPOKEN, {"lastPrice": 1.5}, {CODE: [{"lastPrice": 1.5}]}, id="record"),
        pytest.param(QUOTE, SPOKEN, [{"time": 1}, {"time": 2}], {CODE: [{"time": 1}, {"time": 2}]}, id="records"),
        pytest.param(WHOLE, MARKET, {CODE: {"time": 1}}, {CODE: {"time": 1}}, id="whole"),
        pytest.param(
            "l2/600519.SH/0/",
            {"kind": "l2", "code": CODE},
            {"askPrice": [1, 2]},
            {CODE: [{"askPrice": [1, 2]}]},
            id="l2",
        ),
        pytest.param(
            "formula/%7B%22formula_name%22%3A%22MA%22%2C%22stock_code%22%3A%22600519.SH%22%2C%22period%22%3A%221d%22%2C"
            "%22count%22%3A-1%2C%22dividend_type%22%3A%22none%22%2C%22params%22%3A%7B%7D%7D/",
            {"kind": "formula", "formula_name": "MA", "stock_code": CODE},
            {"dbt": 0, "timelist": [1], "outputs": {"MA1": [1.5]}},
            {"formula_name": "MA", "stock_code": CODE, "data": {"dbt": 0, "timelist": [1], "outputs": {"MA1": [1.5]}}},
            id="formula",
        ),
    ],
)
def test_a_record_is_published(
    running: Desk, topic: str, spoken: dict[str, Any], data: object, body: dict[str, Any]
) -> None:
    consumer = running.consumer(topic)
    pusher = running.pusher(kinds=["quote", "whole", "l2", "formula"])
    pusher.until("subscribe")
    pusher.push(data, spoken)
    assert consumer.body() == (topic, body)


def test_numbers_and_texts_pass_as_they_are(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    # As Python 3.6 writes it: with spaces, and escapes for what is not ASCII.
    pusher.raw(b'{"topic": ' + json.dumps(SPOKEN).encode() + b', "data": {"n": 123456789012345678901, ')
    pusher.raw(b'"f": 1.10, "t": "\\u8305\\u53f0", "x": null, "b": [true, {}]}}\r\n')
    assert consumer.body()[1] == {
        CODE: [{"n": 123456789012345678901, "f": 1.1, "t": "茅台", "x": None, "b": [True, {}]}]
    }


def test_the_time_of_a_record_is_shown(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    pusher.push({"a": 1}, time=1795904107650)
    # A clock that is ahead gives no negative delay.
    pusher.push({"a": 2}, time=10**15)
    frames = [consumer.frame(), consumer.frame()]
    assert frames[0].received_ns == 1795904107650 * 10**6
    assert frames[1].received_ns <= frames[1].published_ns


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"garbage", "bad_json"),
        (b"", "bad_json"),
        (b'{"topic": {"kind": "quote"', "bad_json"),
        (b'{"a": "\xff"}', "bad_request"),
        (b'{"topic": @, "data": {"a": "\xff"}}', "bad_json"),
        (b'{"topic": @, "data": {"a": NaN}}', "bad_json"),
        (b'{"topic": @, "data": {"a": 1e999}}', "bad_request"),
        (b'{"topic": @, "data": {"a": "\\ud800"}}', "bad_json"),
        (b'{"topic": @, "data": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "bad_json"),
        (b'{"topic": @, "data": {"a": ' + b"[" * 400 + b"]" * 400 + b"}}", "bad_request"),
        (b"[]", "bad_request"),
        (b'{"type": "nonsense"}', "bad_request"),
        (b'{"type": "hello", "protocol": 1, "name": "desk", "kinds": ["quote"]}', "bad_request"),
        (b'{"data": {}}', "bad_request"),
        (b'{"topic": {"kind": "quote", "code": "600519", "period": "tick"}, "data": {}}', "bad_request"),
        (b'{"topic": {"kind": "quote", "code": "600519.SH", "period": "2m"}, "data": {}}', "bad_request"),
        (b'{"topic": {"kind": "status", "code": "feeder"}, "data": {}}', "bad_request"),
        (b'{"topic": {"kind": "whole", "code": "SH"}, "data": {}}', "not_wanted"),
        (b'{"topic": @, "data": 5}', "bad_request"),
        (b'{"topic": @, "data": []}', "bad_request"),
        (b'{"topic": @, "data": [{}, 5]}', "bad_request"),
        (b'{"topic": @}', "bad_request"),
        (b'{"topic": @, "data": {}, "time": "now"}', "bad_request"),
        (b'{"topic": @, "data": {}, "time": true}', "bad_request"),
        (b'{"topic": @, "data": {}, "time": -5}', "bad_request"),
        (b'{"type": "state", "state": "fine"}', "bad_request"),
        (b'{"type": "accounts", "accounts": []}', "not_wanted"),
        (b'{"topic": {"kind": "trade", "account": "1"}, "id": "1", "event": "order", "data": {}}', "not_wanted"),
        (b"x" * (4 * 1024 * 1024 + 1), "too_long"),
    ],
)
def test_garbage_costs_its_line_only(running: Desk, line: bytes, code: str) -> None:
    consumer = running.consumer(QUOTE)
    pusher = running.pusher()
    pusher.until("subscribe")
    pusher.raw(line.replace(b"@", json.dumps(SPOKEN).encode()) + b"\n")
    error = pusher.until("error")
    assert (error["line"], error["code"]) == (2, code)
    pusher.push({"time": 1})
    assert consumer.body() == (QUOTE, {CODE: [{"time": 1}]})


def test_error_lines_are_few_and_all_are_counted(running: Desk) -> None:
    consumer = running.consumer()
    pusher = running.pusher()
    pusher.raw(b"garbage\n" * 1000)
    pusher.until("error")
    # The first heartbeat may be one of before the hello, without a pusher.
    consumer.until(lambda: [each["refused"] for each in consumer.status()["pushers"]] == [1000])
    pusher.say({"type": "bye"})
    lines = 1
    while (line := pusher.line()) is not None and line["type"] == "error":
        lines += 1
    # Ten at once, and perhaps ten in each second that the test took.
    assert 10 <= lines < 100


def test_a_record_that_nobody_wants_is_left_out(running: Desk) -> None:
    consumer = running.consumer()
    pusher = running.pusher()
    pusher.push({"time": 1})
    # The answer to the line behind it shows that the record was taken.
    pusher.say({"type": "nonsense"})
    pusher.until("error")
    consumer.want(QUOTE)
    pusher.until("subscribe")
    pusher.push({"time": 2})
    assert consumer.body() == (QUOTE, {CODE: [{"time": 2}]})


def test_a_snapshot_in_parts_is_published_as_one(running: Desk) -> None:
    consumer = running.consumer(WHOLE)
    pusher = running.pusher(kinds=["whole"])
    pusher.until("subscribe")
    pusher.push({"600000.SH": {"a": 1}}, MARKET, more=True)
    pusher.push({"600001.SH": {"a": 2}}, MARKET, more=True)
    assert consumer.state_of(WHOLE).state == "pending"
    pusher.push({"600002.SH": {"a": 3}}, MARKET)
    assert consumer.body() == (WHOLE, {"600000.SH": {"a": 1}, "600001.SH": {"a": 2}, "600002.SH": {"a": 3}})
    pusher.push({"600001.SH": {"a": 4}}, MARKET)
    assert consumer.body() == (WHOLE, {"600001.SH": {"a": 4}})
    pusher.push({"000001.SZ": {"a": 4}}, MARKET)
    assert pusher.until("error")["code"] == "bad_request"


def test_a_topic_with_too_large_a_snapshot_is_refused(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "SNAPSHOT_BYTES", 1000)
    consumer = running.consumer(WHOLE)
    pusher = running.pusher(kinds=["whole"])
    pusher.until("subscribe")
    for _ in range(20):
        pusher.push({"600000.SH": {"a": 1}}, MARKET, more=True)
    # Its end is no market as a whole, and neither is what follows.
    pusher.push({"600001.SH": {"a": 2}}, MARKET)
    pusher.push({"600002.SH": {"a": 3}}, MARKET)
    assert pusher.until("error")["code"] == "too_long"
    consumer.until(lambda: consumer.state_of(WHOLE).state == "refused")
    pusher.say({"type": "nonsense"})
    assert pusher.until("error")["line"] == 24
    assert consumer.bodies == []
    # It begins anew once it is subscribed again.
    consumer.leave(WHOLE)
    pusher.until("unsubscribe")
    consumer.want(WHOLE)
    pusher.until("subscribe")
    pusher.push({"600003.SH": {"a": 4}}, MARKET)
    assert consumer.body() == (WHOLE, {"600003.SH": {"a": 4}})


def test_a_begun_snapshot_of_a_lost_pusher_counts_no_more(running: Desk) -> None:
    consumer = running.consumer(WHOLE)
    pusher = running.pusher(kinds=["whole"])
    pusher.until("subscribe")
    unfinished = running.push._pushers._entrance.unfinished  # type: ignore[union-attr]
    pusher.push({"600000.SH": {"a": 1}}, MARKET, more=True)
    wait_for(lambda: unfinished.size > 0, "a part")
    pusher.close()
    consumer.status(state="down")
    assert unfinished.size == 0


def test_names_of_topics_take_bounded_memory(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feeder.push.pusher._ROUTE_BYTES", 20_000)
    pusher = running.pusher()
    for number in range(200):
        pusher.push({"time": 1}, {"kind": "quote", "code": f"{number:06d}.SZ", "period": "tick"})
    pusher.say({"type": "nonsense"})
    assert pusher.until("error")["line"] == 202
    (found,) = running.push._pushers._pushers.values()  # type: ignore[union-attr]
    assert 0 < len(found._routes) < 40


PROGRAM = """
import json, socket, sys, time
connected = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
hello = {"type": "hello", "protocol": 1, "name": "killed", "kinds": ["quote", "trade"], "accounts": [sys.argv[2]]}
hello["key"] = sys.argv[3]
connected.sendall(json.dumps(hello).encode() + b"\\n")
time.sleep(600)
"""


def test_a_killed_pusher_is_down_and_comes_back_up(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    for lost in (False, True, True):
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(running.address[1]), ACCOUNT, KEY])
        try:
            up = consumer.status(state="up")
            assert (up["data_lost"], up["upstream"]) == (lost, 1)
        finally:
            os.kill(program.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            program.wait()
        down = consumer.status(state="down")
        assert (down["reason"], down["data_lost"], down["upstream"]) == ("pusher_gone", False, 0)
        assert [(each["state"], each["reason"]) for each in down["accounts"]] == [("down", "pusher_gone")]
        assert down["pushers"][0]["silent"] is None


def test_a_pusher_that_says_bye_is_not_missed(running: Desk) -> None:
    consumer = running.consumer()
    other = running.pusher(name="other", kinds=["l2"])
    pusher = running.pusher(kinds=["quote", "trade"], accounts=[ACCOUNT])
    consumer.until(lambda: consumer.status(state="up")["accounts"])
    pusher.say({"type": "bye"})
    consumer.until(lambda: len(consumer.status(state="up")["pushers"]) == 1)
    assert consumer.status(state="up")["accounts"] == []
    other.say({"type": "bye"})
    assert consumer.status(state="connecting")["pushers"] == []


def test_a_pusher_says_how_it_is(running: Desk) -> None:
    consumer = running.consumer()
    pusher = running.pusher(kinds=["trade"])
    pusher.say(
        {"type": "state", "state": "stale", "reason": "market_silent"},
        {"type": "accounts", "accounts": [{"account": ACCOUNT, "type": "STOCK", "state": "stale", "reason": "x"}]},
    )
    assert consumer.status(state="stale")["reason"] == "market_silent"
    consumer.until(lambda: consumer.status(state="stale")["accounts"])
    account = consumer.status(state="stale")["accounts"][0]
    assert (account["account"], account["type"], account["state"]) == ("******0365", "STOCK", "stale")
    pusher.say({"type": "state", "state": "up", "data_lost": True})
    assert consumer.status(state="up")["data_lost"]


@pytest.mark.parametrize("account", ["1000\nup", "1000\x1b[31m", "10 00", "1000\u2028", ""])
def test_an_account_that_would_break_a_line_is_refused(running: Desk, account: str) -> None:
    answer = running.connect().hello(kinds=["trade"], accounts=[account])
    assert (answer["type"], answer["code"]) == ("refused", "bad_request")
    pusher = running.pusher(name="other", kinds=["trade"])
    pusher.say({"type": "accounts", "accounts": [{"account": account}]})
    assert pusher.until("error")["code"] == "bad_request"


def test_a_reason_of_a_pusher_is_one_line(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    pusher = running.pusher(kinds=["quote", "trade"], accounts=[ACCOUNT])
    reason = "no\n\x1b[31mok\u202e  feeder"
    account = {"account": ACCOUNT, "type": "ST\nOCK", "state": "down", "reason": reason}
    pusher.say({"type": "accounts", "accounts": [account]}, {"type": "state", "state": "stale", "reason": reason})
    told = consumer.status(state="stale")
    assert told["reason"] == told["pushers"][0]["reason"] == told["accounts"][0]["reason"] == "no [31mok feeder"
    assert told["accounts"][0]["type"] == "ST OCK"
    pusher.until("subscribe")
    pusher.say({"type": "refuse", "topic": SPOKEN, "code": "unknown_symbol", "error": reason})
    consumer.until(lambda: consumer.state_of(QUOTE).state == "refused")
    assert consumer.state_of(QUOTE).error == "no [31mok feeder"


def test_the_loss_of_one_is_none_of_another(running: Desk) -> None:
    consumer = running.consumer()
    other = running.pusher(name="other", kinds=["l2"])
    running.pusher().close()
    assert consumer.status(state="down")["reason"] == "pusher_gone"
    running.pusher()
    assert consumer.status(state="up")["data_lost"]
    other.say({"type": "state", "state": "stale", "reason": "market_silent"}, {"type": "state", "state": "up"})
    assert not consumer.status(state="stale")["data_lost"]
    assert not consumer.status(state="up")["data_lost"]


def test_a_silent_pusher_is_given_up(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushers, "SILENCE_SECONDS", 0.1)
    consumer = running.consumer()
    pusher = running.pusher()
    assert consumer.status(state="down")["reason"] == "pusher_gone"
    assert pusher.line() is None


def test_the_feeder_stops_with_pushers_connected(tmp_path: Path) -> None:
    with desk(tmp_path) as running:
        pusher = running.pusher()
        thread = running.push._thread
        running.feeder.stop()
        assert not thread.is_alive()
        assert pusher.line() is None
