"""The hello: who is welcome, and each way to be refused. Real sockets, a real feeder."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feeder.push import connection
from tests.support.push_feeder import QUOTE, Desk, desk, names
from tests.support.pusher import CODE, KEY, SPOKEN
from tests.support.waiting import wait_for


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as found:
        yield found


def test_a_pusher_is_welcome_and_listed(running: Desk) -> None:
    consumer = running.consumer()
    pusher = running.connect()
    welcome = pusher.hello(kinds=["quote", "trade"], markets=["SH"], accounts=["1000000365"])
    assert welcome == {"type": "welcome", "protocol": 1, "epoch": welcome["epoch"], "silence": 15}
    status = consumer.status(state="up")
    assert status["source"] == "push"
    assert not status["simulated"]
    (listed,) = status["pushers"]
    assert (listed["kinds"], listed["markets"], listed["accounts"]) == (["quote", "trade"], ["SH"], ["******0365"])
    assert (status["accounts"][0]["account"], status["accounts"][0]["state"]) == ("******0365", "up")


def test_without_a_pusher_the_feed_is_connecting(running: Desk) -> None:
    assert running.consumer().status(state="connecting")["pushers"] == []


def test_a_simulated_pusher_marks_the_feed(running: Desk) -> None:
    consumer = running.consumer()
    running.pusher(simulated=True)
    assert consumer.status(state="up")["simulated"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        pytest.param({"key": "another-key-of-nobody"}, "forbidden", id="key"),
        pytest.param({"key": ""}, "forbidden", id="no-key"),
        pytest.param({"key": "密钥\ud800"}, "bad_request", id="half-a-character"),
        pytest.param({"key": "密钥密钥密钥密钥密钥密钥"}, "forbidden", id="key-of-other-letters"),
        pytest.param({"protocol": 2}, "unsupported", id="protocol"),
        pytest.param({"protocol": "1"}, "bad_request", id="type"),
        pytest.param({"name": "Desk"}, "bad_request", id="name"),
        pytest.param({"name": "a" * 33}, "bad_request", id="long-name"),
        pytest.param({"kinds": []}, "bad_request", id="no-kinds"),
        pytest.param({"kinds": ["status"]}, "bad_request", id="kind-of-the-feeder"),
        pytest.param({"kinds": ["ticks"]}, "bad_request", id="unknown-kind"),
        pytest.param({"markets": ["XX"]}, "bad_request", id="market"),
        pytest.param({"type": "heartbeat"}, "bad_request", id="no-hello"),
    ],
)
def test_a_hello_is_refused(running: Desk, fields: dict[str, Any], code: str) -> None:
    pusher = running.connect()
    refused = pusher.hello(**fields)
    assert (refused["type"], refused["code"]) == ("refused", code)
    assert KEY not in json.dumps(refused)
    counted = running.push.health().pushers_refused
    assert (counted[code], sum(counted.values())) == (1, 1)
    assert pusher.line() is None


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="http"),
        pytest.param(b'{"topic": {}, "data": {}}\n', id="record"),
        pytest.param(b"\n", id="empty"),
        pytest.param(b"[1]\n", id="array"),
        pytest.param(b"\xff\xfe\n", id="bytes"),
        pytest.param(b"x" * (connection.HELLO_BYTES + 1) + b"\n", id="long"),
    ],
)
def test_before_the_hello_a_bad_line_ends(running: Desk, line: bytes) -> None:
    pusher = running.connect()
    pusher.raw(line)
    refused = pusher.until("refused")
    assert refused["code"] == "bad_request"
    # Whatever follows: a page of a browser can send any line behind its headers.
    assert pusher.line() is None


def test_a_long_line_may_follow_the_hello_at_once(running: Desk) -> None:
    pusher = running.connect()
    hello = {"type": "hello", "protocol": 1, "name": "desk", "kinds": ["quote"], "key": KEY}
    pusher.say(hello, {"topic": SPOKEN, "data": {"x": "y" * 2 * connection.HELLO_BYTES}}, {"type": "nonsense"})
    error = pusher.until("error")
    assert (error["line"], error["code"]) == (3, "bad_request")


def test_a_connection_without_a_hello_ends(running: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELLO_SECONDS", 0.05)
    assert running.connect().line() is None


def test_wrong_keys_cost_no_other_pusher(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    good = running.pusher()
    assert good.until("subscribe")
    for _ in range(100):
        assert running.connect().hello(key="another-key-of-nobody")["code"] == "forbidden"
    idle = [socket.create_connection(running.address) for _ in range(30)]
    good.push({"time": 1})
    assert consumer.body() == (QUOTE, {CODE: [{"time": 1}]})
    # A place that an idle connection has is free again for another pusher.
    running.pusher(name="other", kinds=["l2"])
    for each in idle:
        each.close()


def test_the_same_part_of_another_is_taken(running: Desk) -> None:
    running.pusher(name="ctp", kinds=["quote", "whole"], markets=["SH", "SF"])
    refused = running.connect().hello(name="desk", kinds=["quote"], markets=["SZ", "SH"])
    assert (refused["code"], refused["error"]) == ("taken", "quote of SH is served by ctp")
    running.pusher(name="desk", kinds=["quote"], markets=["SZ"])


def test_a_newer_connection_replaces_the_older(running: Desk) -> None:
    consumer = running.consumer(QUOTE)
    older = running.pusher()
    consumer.status(state="up", data_lost=False)
    newer = running.pusher()
    assert older.until("refused")["code"] == "replaced"
    assert older.line() is None
    assert consumer.status(state="up", data_lost=True)
    assert newer.until("subscribe")
    newer.push({"time": 2})
    assert consumer.body() == (QUOTE, {CODE: [{"time": 2}]})


def test_the_setting_says_who_may_serve_what(tmp_path: Path) -> None:
    with desk(tmp_path, pushers=("ctp:quote+whole:SF", "desk:trade")) as running:
        consumer = running.consumer()
        assert consumer.status(reason="waiting for ctp")["state"] == "connecting"
        for name, kinds, markets in (
            ("other", ["quote"], None),
            ("ctp", ["trade"], None),
            ("ctp", ["quote"], ["SF", "SH"]),
        ):
            refused = running.connect().hello(name=name, kinds=kinds, markets=markets)
            assert refused["code"] == "forbidden"
        running.pusher(name="ctp", kinds=["quote"])
        assert consumer.status(reason="waiting for desk")["pushers"][0]["markets"] == ["SF"]
        running.pusher(name="desk", kinds=["trade"])
        assert names(consumer.status(state="up")["pushers"]) == {"ctp": "up", "desk": "up"}


def test_the_65th_connection_has_no_place(running: Desk) -> None:
    pushers = [running.pusher(name=f"p{number}", kinds=["trade"], accounts=[f"100{number}"]) for number in range(64)]
    assert running.connect().line() is None
    pushers[0].close()

    def has_place() -> bool:
        late = running.connect()
        late.say({"type": "hello", "protocol": 1, "name": "p0", "kinds": ["trade"], "accounts": ["1"], "key": KEY})
        return late.line() is not None

    wait_for(has_place, "a place")
