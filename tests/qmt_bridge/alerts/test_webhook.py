"""A webhook on a real HTTP server: what is posted, and servers that redirect, hang, or send byte by byte."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets import webhook
from qmt_bridge.alerts.targets.target import Kind, Target
from tests.support.hooks import Hooks, hooks, silent
from tests.support.ports import free_port

NOTICE = Notice(event="alert", id="1", rule="feed", title="行情中断", text="行情中断\n状态", name="desk", time=5)


@pytest.fixture
def server() -> Iterator[Hooks]:
    with hooks() as running:
        yield running


def test_a_webhook_gets_the_message_as_json(server: Hooks) -> None:
    assert webhook.deliver(Target("webhook", f"{server.url}/a?b=c"), [NOTICE]) == ("sent", "HTTP 200")
    [got] = server.got
    assert got.path == "/a?b=c"
    assert (got.body["event"], got.body["title"], got.body["rule"]) == ("alert", "行情中断", "feed")


@pytest.mark.parametrize("kind", ["wecom", "dingtalk", "feishu"])
def test_a_robot_is_sent_again_what_it_did_not_take(server: Hooks, kind: Kind) -> None:
    target = Target(kind, f"{server.url}/robot?access_token=t", "SECRET")
    assert webhook.deliver(target, [NOTICE, NOTICE])[0] == "sent"
    server.answer = lambda got: (200, {}, b'{"errcode":45009,"code":11232}')
    assert webhook.deliver(target, [NOTICE])[0] == "again"
    server.answer = lambda got: (500, {}, b"")
    assert webhook.deliver(target, [NOTICE]) == ("again", "HTTP 500")


def test_a_redirect_is_not_followed(server: Hooks) -> None:
    server.answer = lambda got: (307, {"Location": f"{server.url}/elsewhere"}, b"")
    assert webhook.deliver(Target("webhook", f"{server.url}/a"), [NOTICE]) == ("refused", "HTTP 307")
    assert [got.path for got in server.got] == ["/a"]


@pytest.mark.parametrize("kind", ["webhook", "wecom"])
def test_a_webhook_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    monkeypatch.setattr(webhook, "TIMEOUT", 0.2)
    with silent() as url:
        assert webhook.deliver(Target(kind, url), [NOTICE]) == ("again", "no answer in time")


def test_a_webhook_that_sends_byte_by_byte_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "WHOLE", 0.3)
    ended = threading.Event()

    def drip(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            try:
                while not ended.is_set():
                    connection.sendall(b"H")
                    time.sleep(0.01)
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        dripping = threading.Thread(target=drip, args=(listening,))
        dripping.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}/t0ken"
            outcome, said = webhook.deliver(Target("wecom", url), [NOTICE])
        finally:
            ended.set()
            dripping.join()
    assert outcome == "again"
    assert "t0ken" not in said


def test_a_webhook_that_is_away_is_tried_again() -> None:
    outcome, said = webhook.deliver(Target("webhook", f"http://127.0.0.1:{free_port()}/t0ken"), [NOTICE])
    assert outcome == "again"
    assert "t0ken" not in said
    assert "127.0.0.1" not in said
