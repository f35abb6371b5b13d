"""QMTClient: its decisions without sockets, and itself against a scripted real WebSocket server."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

import qmt_bridge
from qmt_bridge import (
    BadRequest,
    CallbackError,
    ConfigError,
    Disconnected,
    QMTBridgeError,
    QMTClient,
    ServerError,
    StreamState,
    client,
    errors,
)
from qmt_bridge.clients import bookmark
from qmt_bridge.clients import stream as stream_module
from qmt_bridge.clients.bookmark import Bookmark, fingerprint
from qmt_bridge.clients.stream import Stream, Verdict, backoff
from qmt_bridge.reading import backlog, reader
from qmt_bridge.wire import messages, topics
from tests.support.full_disk import full_disk
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.waiting import until

TICK = {"000001.SZ": [{"time": 1, "lastPrice": 10.5}]}
UNKNOWN = {"type": "error", "code": "unknown_symbol", "error": "no such code", "symbol": "999999.SZ", "retry": False}

# No test waits for more than what it started; this is for the day when it does not come.
pytestmark = pytest.mark.timeout(20)

Script = Callable[[ServerConnection], Awaitable[None]]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(stream_module, "_FIRST_DELAY", 0.01)


class Gateway:
    """A server of which each connection plays the next script; the last script is played for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections: list[ServerConnection] = []
        self.ended = asyncio.Event()
        self.port = 0

    async def play(self, connection: ServerConnection) -> None:
        self.connections.append(connection)
        script = self.scripts[min(len(self.connections), len(self.scripts)) - 1]
        try:
            await script(connection)
        except ConnectionClosed:
            pass
        finally:
            self.ended.set()

    @property
    def targets(self) -> list[str]:
        return [connection.request.path for connection in self.connections]

    def client(self, **options) -> QMTClient:
        return QMTClient("127.0.0.1", self.port, **options)


@asynccontextmanager
async def gateway(*scripts: Script, **options) -> AsyncIterator[Gateway]:
    played = Gateway(*scripts)
    async with serve(played.play, "127.0.0.1", 0, **options) as server:
        played.port = port_of(server)
        yield played


def port_of(server: Server) -> int:
    return server.sockets[0].getsockname()[1]


def says(*frames: object, asks: int = 1, then: tuple[int, str] | None = None) -> Script:
    """Script: read the requests, send the frames, then close as told or wait for the client to leave."""

    async def script(connection: ServerConnection) -> None:
        for _ in range(asks):
            await connection.recv()
        for frame in frames:
            await connection.send(frame if isinstance(frame, str) else json.dumps(frame))
        if then is None:
            await connection.wait_closed()
        else:
            await connection.close(*then)

    return script


async def drop(connection: ServerConnection) -> None:
    """Script: lose the connection without a close frame."""
    connection.transport.abort()


async def take(frames, count: int) -> list[dict]:
    taken = []
    async with aclosing(frames):
        async for frame in frames:
            taken.append(frame)
            if len(taken) == count:
                break
    return taken


# What a frame and a close mean.


def stream(kind: str) -> Stream:
    made = []

    class Recording(QMTClient):
        def _subscription(self, stream, *_):
            made.append(stream)

    recording = Recording("host")
    match kind:
        case "realtime":
            recording.realtime(["000001.SZ", "999999.SZ"])
        case "trade":
            recording.trade_events()
        case "download":
            recording.download_progress(["000001.SZ", "999999.SZ"], "1d")
        case "formula":
            recording.formula("MA", "000001.SZ")
    return made[0]


@pytest.mark.parametrize(
    ("kind", "frame", "verdict"),
    [
        pytest.param("realtime", TICK, Verdict.DELIVER, id="quote"),
        pytest.param("realtime", {"type": "heartbeat", "time": 1}, Verdict.IGNORE, id="control"),
        pytest.param("realtime", {"type": "invented"}, Verdict.IGNORE, id="unknown-control"),
        pytest.param("realtime", UNKNOWN, Verdict.WARN, id="one-code-of-two"),
        pytest.param("realtime", UNKNOWN | {"symbol": "000001.SZ"}, Verdict.WARN, id="the-other-code-of-two"),
        pytest.param(
            "realtime",
            {"type": "error", "code": "not_entitled", "error": "no", "codes": ["000001.SZ", "999999.SZ"]},
            Verdict.FAIL,
            id="every-code",
        ),
        pytest.param(
            "realtime",
            UNKNOWN | {"symbols": ["000001.SZ", "999999.SZ"], "retry": True},
            Verdict.AGAIN,
            id="every-code-for-now",
        ),
        pytest.param("realtime", UNKNOWN | {"retry": True}, Verdict.WARN, id="one-code-for-now"),
        pytest.param("trade", {"type": "error", "code": "unauthorized"}, Verdict.IGNORE, id="the-close-says-more"),
        pytest.param("trade", {"type": "error", "code": "resume_expired"}, Verdict.FAIL, id="events-are-missing"),
        pytest.param(
            "realtime", {"type": "error", "code": "bad_request", "error": "no"}, Verdict.FAIL, id="whole-request"
        ),
        pytest.param(
            "realtime",
            {"type": "error", "code": "slow_client", "error": "too slow", "retry": True},
            Verdict.WARN,
            id="the-close-decides",
        ),
        *(
            pytest.param(
                kind,
                {"type": "error", "code": "unknown_field", "field": "x", "retry": False},
                Verdict.WARN,
                id=f"name-{kind}",
            )
            for kind in ("realtime", "trade", "download", "formula")
        ),
        pytest.param("trade", {"type": "order", "seq": 1, "data": {}}, Verdict.DELIVER, id="order"),
        pytest.param("trade", {"type": "disconnected", "seq": 2, "data": {}}, Verdict.DELIVER, id="disconnected"),
        pytest.param("trade", {"type": "invented_by_xttrader", "seq": 3, "data": {}}, Verdict.DELIVER, id="any-event"),
        *(
            pytest.param("trade", {"type": kind}, Verdict.IGNORE, id=f"trade-{kind}")
            for kind in ("welcome", "heartbeat", "feed", "skipped", "snapshot_end", "closing", "subscribed")
        ),
        pytest.param("trade", {"no": "type"}, Verdict.IGNORE, id="trade-untyped"),
        pytest.param("download", {"finished": 1, "total": 2}, Verdict.DELIVER, id="progress"),
        pytest.param("download", {"status": "done"}, Verdict.LAST, id="done"),
        pytest.param("download", {"status": "error", "error": "no"}, Verdict.FAIL, id="failed"),
        pytest.param("realtime", {"status": "done"}, Verdict.DELIVER, id="only-a-download-has-a-status"),
        pytest.param("formula", {"action": "subscribed", "seq_id": 1}, Verdict.IGNORE, id="acknowledged"),
        pytest.param("formula", {"type": "formula_update", "seq_id": 1, "data": {}}, Verdict.DELIVER, id="value"),
        pytest.param(
            "formula",
            {"type": "error", "code": "upstream_refused", "stock_code": "000001.SZ"},
            Verdict.FAIL,
            id="the-only-formula",
        ),
        pytest.param(
            "formula",
            {"type": "error", "code": "internal", "stock_code": "000001.SZ", "retry": True},
            Verdict.AGAIN,
            id="the-only-formula-for-now",
        ),
    ],
)
def test_a_frame_is_judged_by_its_stream(kind, frame, verdict):
    assert stream(kind).judge(frame) is verdict


def test_a_stream_fails_with_its_last_code_until_it_reconnects():
    realtime = stream("realtime")
    assert realtime.judge(UNKNOWN) is Verdict.WARN
    realtime.opened()
    assert realtime.judge(UNKNOWN | {"symbol": "000001.SZ"}) is Verdict.WARN
    assert realtime.judge(UNKNOWN) is Verdict.FAIL


def event(seq: int, **data: object) -> dict[str, object]:
    return {"type": "order", "seq": seq, "data": {"order_id": seq, **data}}


def test_events_move_the_position_and_the_ack_only_begins_it():
    trade = stream("trade")
    assert trade.after is None
    trade.judge({"type": "subscribed", "seq": 0})
    assert trade.after is None, "0 would replay the whole journal"
    trade.judge({"type": "subscribed", "seq": 5})
    assert trade.after == 5
    trade.judge(event(6))
    trade.judge({"type": "heartbeat", "seq": 99})
    trade.judge({"type": "subscribed", "seq": 99})
    assert trade.bookmark == Bookmark(6, fingerprint(event(6))), "what is replayed comes after the ack"


def test_the_event_that_was_seen_last_is_asked_for_again_and_compared():
    trade = stream("trade")
    trade.judge(event(6))
    trade.opened()
    assert trade.after == 5
    # An event that could not be journaled at once is marked then, and only then.
    assert trade.judge(event(6) | {"journaled": False}) is Verdict.IGNORE
    assert trade.judge(event(7)) is Verdict.DELIVER
    trade.opened()
    assert trade.after == 6


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(event(6, price=1), id="another"),
        pytest.param(event(7), id="a-later-one"),
        pytest.param(event(6) | {"seq": 7}, id="the-same-elsewhere"),
        pytest.param(event(1), id="from-the-beginning"),
    ],
)
def test_a_journal_without_the_event_that_was_seen_last_is_an_error(first):
    trade = stream("trade")
    trade.judge(event(6))
    trade.opened()
    with pytest.raises(ServerError, match=f"resume_expired: the event at {first['seq']} is not the one") as caught:
        trade.judge(first)
    assert (caught.value.code, caught.value.frame) == ("resume_expired", first)
    assert trade.bookmark.seq == 6, "it has not been seen"


def test_an_event_too_old_to_compare_counts_if_nothing_is_missing():
    expired = {"type": "error", "code": "resume_expired", "error": "too old", "oldest": 6, "newest": 9, "retry": False}
    trade = stream("trade")
    trade.judge(event(6))
    trade.opened()
    assert trade.judge(expired | {"oldest": 7}) is Verdict.FAIL
    assert trade.judge(expired) is Verdict.AGAIN
    trade.opened()
    assert trade.after == 6
    assert trade.judge(expired) is Verdict.FAIL, "and only once"
    assert trade.judge(event(7)) is Verdict.DELIVER


def test_holes_between_the_events_of_some_accounts_are_no_loss(caplog):
    trade = stream("trade")
    trade.judge({"type": "welcome", "feed": "up", "accounts": ["1000000365"]})
    trade.news.clear()
    for seq in (6, 9, 14):
        assert trade.judge(event(seq)) is Verdict.DELIVER
    assert [state.reason for state in trade.news] == []
    assert "the event after" not in caplog.text


def test_a_jump_of_the_journal_is_told_and_followed(caplog):
    trade = stream("trade")
    trade.judge({"type": "subscribed", "seq": 4})
    told = []
    for seq in (6, 7, 10, 2, 3):
        assert trade.judge(event(seq)) is Verdict.DELIVER
        told.append([(state.state, state.reason, state.count) for state in trade.news])
        trade.news.clear()
    assert told == [[], [], [("skipped", "journal_gap", 2)], [("skipped", "journal_gap", 0)], []]
    assert trade.bookmark.seq == 3
    assert len(caplog.records) == 2


@pytest.mark.parametrize("kind", ["realtime", "trade"])
def test_notices_of_the_gateway_become_states(kind):
    quotes = stream(kind)

    def news(frame):
        assert quotes.judge(frame) is Verdict.IGNORE
        told = quotes.news.copy()
        quotes.news.clear()
        return told

    path = quotes.path
    up = {"type": "welcome", "feed": "up", "reason": None}
    down = {"type": "feed", "state": "down", "reason": "feeder_absent", "data_lost": True}
    assert news(up) == [StreamState("feed_up", path)]
    assert news(up) == [], "of what is known already a new connection is no news"
    assert news(down) == [StreamState("feed_down", path, "feeder_absent", data_lost=True)]
    assert news({"type": "feed", "state": "stale"}) == [StreamState("feed_stale", path)]
    assert news({"type": "feed", "state": "ended"}) == [StreamState("feed_ended", path)]
    assert news({"type": "feed", "state": "invented"}) == []
    skipped = {"type": "skipped", "count": 412, "reason": "slow_client"}
    assert news(skipped) == [StreamState("skipped", path, "slow_client", count=412)]
    ended = {"type": "snapshot_end", "codes": ["SH", "SZ"], "count": 5190}
    assert news(ended) == [StreamState("snapshot_end", path, count=5190, codes=("SH", "SZ"))]
    assert news({"type": "closing", "reason": "server_restart"}) == [StreamState("closing", path, "server_restart")]
    assert quotes.closing
    quotes.opened()
    assert not quotes.closing


def test_a_download_is_repeated_only_if_the_feeder_was_away():
    away = {"type": "error", "status": "error", "code": "upstream_unavailable", "error": "away", "retry": True}
    download = stream("download")
    assert download.judge(away) is Verdict.WARN
    assert download.closed(1013, "")
    with pytest.raises(ServerError, match="upstream_unavailable: away"):
        download.closed(1011, "")
    download.opened()
    assert download.closed(1011, "")


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013, None])
def test_a_stream_comes_back_after(code):
    assert stream("realtime").closed(code, "")
    assert stream("download").closed(code, "")


@pytest.mark.parametrize("code", [1003, 1007, 1008, 1009])
def test_a_stream_ends_with_an_error_after(code):
    with pytest.raises(Disconnected, match=f"{code}: unauthorized") as caught:
        stream("trade").closed(code, "unauthorized")
    assert (caught.value.code, caught.value.reason) == (code, "unauthorized")


def test_a_normal_close_ends_a_stream_but_not_an_unfinished_download():
    assert not stream("realtime").closed(1000, "")
    with pytest.raises(Disconnected, match="1000"):
        stream("download").closed(1000, "")


def test_delays_double_up_to_half_a_minute_and_are_spread(monkeypatch):
    monkeypatch.undo()
    assert [backoff(failures, 1.0) for failures in (1, 2, 3, 7, 100_000)] == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert backoff(3, 0.0) == backoff(3, 1.0) / 2
    assert [backoff(0, jitter) for jitter in (0.0, 0.5)] == [0.0, 0.25], "at once, but not all clients together"


def test_a_request_stays_below_the_gateways_limit():
    made = []

    class Recording(QMTClient):
        def _subscription(self, stream, *_):
            made.append(stream)

    codes = [f"{number:032}.CFFEX" for number in range(2500)]
    Recording("host").realtime(codes, "1m")
    requests = made[0].requests
    assert [code for request in requests for code in json.loads(request)["stocks"]] == codes
    assert {json.loads(request)["period"] for request in requests} == {"1m"}
    assert max(map(len, requests)) <= 64 * 1024


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda c: c.realtime("000001.SZ"), id="realtime-a-string"),
        pytest.param(lambda c: c.realtime([]), id="realtime-nothing"),
        pytest.param(lambda c: c.whole_quote("SH"), id="whole-a-string"),
        pytest.param(lambda c: c.l2_thousand([]), id="l2-nothing"),
        pytest.param(lambda c: c.download_progress([], "1d"), id="download-nothing"),
    ],
)
def test_codes_must_be_a_list_and_not_empty(ask):
    with pytest.raises(BadRequest, match="must be a non-empty list of codes"):
        ask(QMTClient("host"))


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("192.168.1.100", "ws://192.168.1.100:8000"),
        ("bridge.example", "ws://bridge.example:8000"),
        ("::1", "ws://[::1]:8000"),
        ("[::1]", "ws://[::1]:8000"),
        ("fe80::1%eth0", "ws://[fe80::1%eth0]:8000"),
    ],
)
def test_a_host_is_a_name_or_an_address(host, shown):
    assert repr(QMTClient(host, api_key="secret")) == f"<QMTClient {shown}>"


@pytest.mark.parametrize("host", ["", "ws://host", "host:8000", "host/ws", "a b", "user@host", "[host]", "host?x"])
def test_anything_else_is_no_host(host):
    with pytest.raises(ConfigError, match="host: must be"):
        QMTClient(host)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_port_has_sixteen_bits(port):
    with pytest.raises(ConfigError, match=f"port: .*{port}"):
        QMTClient("host", port)


# Against a server.


async def test_every_stream_asks_as_documented():
    frames = {
        "/ws/realtime": TICK,
        "/ws/whole_quote": {"000001.SZ": {"time": 1}},
        "/ws/l2_thousand": {"000001.SZ": [{"time": 1}]},
        "/ws/download_progress": {"status": "done"},
        "/ws/formula": {"type": "formula_update", "seq_id": 1, "data": {}},
    }
    asked = {}

    async def script(connection):
        path = connection.request.path
        asked[path] = json.loads(await connection.recv())
        await connection.send(json.dumps(frames[path]))
        await connection.wait_closed()

    async with gateway(script) as server:
        c = server.client()
        got = [
            await take(c.realtime(["000001.SZ", "600519.SH"]), 1),
            await take(c.whole_quote(["SH", "SZ"]), 1),
            await take(c.l2_thousand(["000001.SZ"]), 1),
            await take(c.download_progress(["000001.SZ"], "1d"), 1),
            await take(c.formula("MA", "000001.SZ", params={"N": 5}), 1),
        ]
        assert got == [[frame] for frame in frames.values()]
        assert asked == {
            "/ws/realtime": {"stocks": ["000001.SZ", "600519.SH"], "period": "tick"},
            "/ws/whole_quote": {"codes": ["SH", "SZ"]},
            "/ws/l2_thousand": {"stocks": ["000001.SZ"]},
            "/ws/download_progress": {"stocks": ["000001.SZ"], "period": "1d", "start_time": "", "end_time": ""},
            "/ws/formula": {
                "action": "subscribe",
                "formula_name": "MA",
                "stock_code": "000001.SZ",
                "period": "1d",
                "count": -1,
                "dividend_type": "none",
                "params": {"N": 5},
            },
        }
        await take(c.l2_thousand(["000001.SZ"], gear_num=20), 1)
        assert asked["/ws/l2_thousand"] == {"stocks": ["000001.SZ"], "gear_num": 20}


async def test_many_codes_are_asked_for_in_several_frames_and_all_delivered():
    codes = [f"{number:06}.SZ" for number in range(2500)]
    asked = []

    async def script(connection):
        while len(asked) < 2500:
            asked.extend(json.loads(await connection.recv())["stocks"])
        await says(TICK, asks=0)(connection)

    async with gateway(script, max_size=64 * 1024) as server:
        assert await take(server.client().realtime(codes), 1) == [TICK]
    assert asked == codes


async def test_the_key_is_a_header_on_every_stream_and_never_in_the_url():
    async with gateway(says(TICK), says({"type": "order", "seq": 1, "data": {}}, asks=0)) as server:
        c = server.client(api_key="s3cret/+&=key")
        await take(c.realtime(["000001.SZ"]), 1)
        await take(c.trade_events(), 1)
        assert [c.request.headers["Authorization"] for c in server.connections] == ["Bearer s3cret/+&=key"] * 2
        assert server.targets == ["/ws/realtime", "/ws/trade"]


async def test_a_key_that_no_header_can_hold_is_url_encoded():
    async with gateway(says({"type": "order", "seq": 1, "data": {}}, asks=0)) as server:
        await take(server.client(api_key="密 钥&a=b").trade_events(after=3), 1)
        assert server.targets == ["/ws/trade?api_key=%E5%AF%86%20%E9%92%A5%26a%3Db&after=3"]
        assert "Authorization" not in server.connections[0].request.headers


async def test_without_a_key_no_key_is_sent():
    async with gateway(says(TICK)) as server:
        await take(server.client().realtime(["000001.SZ"]), 1)
        assert "Authorization" not in server.connections[0].request.headers


@pytest.mark.parametrize("key", ["s3cret-key", "密钥-s3cret-key"])
async def test_the_key_is_in_no_log_line(key, caplog):
    caplog.set_level(logging.DEBUG)
    async with gateway(drop, says({"type": "order", "seq": 1, "data": {}}, asks=0, then=(1008, ""))) as server:
        server_logger = logging.getLogger("websockets.server")
        server_logger.setLevel(logging.WARNING)
        try:
            with pytest.raises(Disconnected) as caught:
                await take(server.client(api_key=key).trade_events(), 2)
        finally:
            server_logger.setLevel(logging.NOTSET)
    assert "connecting again" in caplog.text
    assert "s3cret" not in caplog.text + repr(caught.value)


async def test_a_lost_connection_is_made_again_and_the_request_repeated(caplog):
    caplog.set_level(logging.INFO, "qmt_bridge.client")
    asked = []

    def asks(then: Script) -> Script:
        async def script(connection):
            asked.append(json.loads(await connection.recv()))
            await then(connection)

        return script

    async with gateway(
        asks(says(TICK, asks=0, then=(1012, "server_restart"))),
        asks(drop),
        asks(says(asks=0, then=(1013, "slow_client"))),
        asks(says(TICK, asks=0)),
    ) as server:
        assert await take(server.client().realtime(["000001.SZ"], "1m"), 2) == [TICK, TICK]
    assert asked == [{"stocks": ["000001.SZ"], "period": "1m"}] * 4
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO"], "one line for an episode, one for its end"
    assert "closed with 1012 server_restart; connecting again" in caplog.text


async def test_a_server_that_was_away_for_a_while_is_found_again():
    port = free_port()
    first = Gateway(says(TICK))
    server = await serve(first.play, "127.0.0.1", port)
    # Within that time the first connection has to be made, also on a busy machine.
    timeout = 1.5
    frames = QMTClient("127.0.0.1", port, connect_timeout=timeout).realtime(["000001.SZ"])
    try:
        assert await anext(frames) == TICK
        server.close()
        await server.wait_closed()
        following = asyncio.ensure_future(anext(frames))
        # Beyond connect_timeout, which is for the first connection only.
        done, _ = await asyncio.wait([following], timeout=timeout + 0.2)
        assert not done
        server = await serve(first.play, "127.0.0.1", port)
        assert await following == TICK
    finally:
        await frames.aclose()
        server.close()
        await server.wait_closed()


async def test_delays_grow_while_connections_do_not_last(monkeypatch):
    failures = []
    monkeypatch.setattr(stream_module, "backoff", lambda count, jitter: failures.append(count) or 0.0)
    async with gateway(drop, drop, says(TICK, then=(1011, "")), drop, says(TICK)) as server:
        await take(server.client().realtime(["000001.SZ"]), 2)
    assert failures == [1, 2, 3, 4]


@pytest.mark.parametrize("how", ["closing", "1001", "1012"])
async def test_an_announced_end_is_no_failure_but_only_once(how, monkeypatch):
    failures = []
    monkeypatch.setattr(stream_module, "backoff", lambda count, jitter: failures.append(count) or 0.0)

    async def closing(connection):
        await connection.recv()
        if how == "closing":
            await connection.send(json.dumps({"type": "closing", "reason": "server_restart"}))
            await drop(connection)
        else:
            await connection.close(int(how))

    async with gateway(closing, closing, says(TICK)) as server:
        await take(server.client().realtime(["000001.SZ"]), 1)
    assert failures == [0, 2]


async def test_a_connection_that_lasted_was_good_however_quiet(monkeypatch):
    failures = []
    monkeypatch.setattr(stream_module, "backoff", lambda count, jitter: failures.append(count) or 0.0)
    monkeypatch.setattr(stream_module, "_GOOD_SECONDS", -1.0)
    async with gateway(drop, drop, says(TICK)) as server:
        await take(server.client().realtime(["000001.SZ"]), 1)
    assert failures == [1, 1]


@pytest.mark.parametrize("code", [1001, 1006, 1011, 1012, 1013])
async def test_trade_events_go_on_after_the_last_one_seen(code):
    async def lose(connection):
        for frame in ({"type": "welcome"}, event(7), event(8)):
            await connection.send(json.dumps(frame))
        # The answer to a ping comes after everything before it was read.
        await (await connection.ping())
        await (drop(connection) if code == 1006 else connection.close(code))

    async with gateway(
        lose,
        drop,
        says({"type": "heartbeat", "time": 1}, event(8), event(9), asks=0),
    ) as server:
        got = await take(server.client(api_key="k").trade_events(), 3)
        assert got == [event(7), event(8), event(9)]
        assert server.targets == ["/ws/trade", "/ws/trade?after=7", "/ws/trade?after=7"]


async def test_a_peer_that_vanished_without_a_word_is_left(monkeypatch):
    monkeypatch.setattr(client, "_PING_INTERVAL", 0.05)
    monkeypatch.setattr(client, "_PING_TIMEOUT", 0.05)

    async def vanish(connection):
        await connection.send(json.dumps(event(1)))
        # As after a pulled cable: open here and there, and nothing passes.
        connection.transport.pause_reading()
        await connection.wait_closed()

    options = {"ping_interval": None, "close_timeout": 0.01}
    monkeypatch.setattr(client, "_CLOSE_TIMEOUT", 0.01)
    async with gateway(vanish, says(event(1), event(2), asks=0), **options) as server:
        got = await take(server.client(api_key="k").trade_events(), 2)
        assert [frame["seq"] for frame in got] == [1, 2]
        assert server.targets == ["/ws/trade", "/ws/trade?after=0"]
        # Its end of the connection would be noticed by its own pings.
        server.connections[0].transport.abort()


async def test_events_of_a_connection_lost_before_the_first_are_replayed():
    async with gateway(
        says({"type": "welcome"}, {"type": "subscribed", "seq": 41}, asks=0, then=(1012, "")),
        says({"type": "order", "seq": 42, "data": {}}, asks=0),
        subprotocols=["qmt.v1.json"],
    ) as server:
        assert [event["seq"] for event in await take(server.client(api_key="k").trade_events(), 1)] == [42]
        assert server.connections[0].subprotocol == "qmt.v1.json"
        assert server.targets == ["/ws/trade", "/ws/trade?after=41"]


async def test_trade_events_can_start_where_an_earlier_run_ended():
    async with gateway(says({"type": "trade", "seq": 1, "data": {}}, asks=0)) as server:
        got = []

        def stop(event):
            got.append(event)
            raise StopIteration

        with pytest.raises(CallbackError):
            await server.client(api_key="k").subscribe_trade_events(stop, after=0)
        assert server.targets == ["/ws/trade?after=0"]
        assert got == [{"type": "trade", "seq": 1, "data": {}}]


async def test_on_state_is_told_the_life_of_a_stream(monkeypatch):
    monkeypatch.setattr(stream_module, "backoff", lambda failures, jitter: failures / 1000)
    told: list[StreamState] = []

    async def tell(state):
        told.append(state)

    def refuse(connection, request):
        return connection.respond(503, "no") if len(told) == 5 else None

    async with gateway(
        says({"type": "welcome", "feed": "down", "reason": "feeder_absent"}, then=(1011, "internal")),
        says({"type": "welcome", "feed": "up"}, TICK, {"type": "closing", "reason": "server_restart"}, TICK),
        process_request=refuse,
    ) as server:
        await take(server.client(on_state=tell).realtime(["000001.SZ"]), 2)
    path = "/ws/realtime"
    cannot_connect = told.pop(5)
    assert told == [
        StreamState("connecting", path, attempt=1),
        StreamState("connected", path),
        StreamState("feed_down", path, "feeder_absent"),
        StreamState("disconnected", path, "internal", 1011, delay=0.001),
        StreamState("connecting", path, attempt=1),
        StreamState("connecting", path, attempt=2),
        StreamState("connected", path),
        StreamState("feed_up", path),
        StreamState("resumed", path),
        StreamState("closing", path, "server_restart"),
    ]
    assert (cannot_connect.state, cannot_connect.code, cannot_connect.delay) == ("disconnected", None, 0.002)
    assert "503" in cannot_connect.reason


@pytest.mark.parametrize(
    ("frames", "position"),
    [
        pytest.param([{"type": "subscribed", "seq": 9, "after": 7}, event(8), event(9)], 8, id="the-event-seen-last"),
        pytest.param([{"type": "subscribed", "seq": 9, "after": 7}], None, id="not-before-it"),
    ],
)
async def test_trade_events_resume_after_the_newest_known_event(frames, position):
    told: list[StreamState] = []
    beat = {"type": "skipped", "count": 1}
    async with gateway(
        says(event(8), asks=0, then=(1012, "")),
        says(*frames, beat, asks=0, then=(1008, "")),
    ) as server:
        with pytest.raises(Disconnected):
            await take(server.client(api_key="k", on_state=told.append).trade_events(), 9)
    assert [state.position for state in told if state.state == "resumed"] == ([position] if position else [])


async def test_trade_events_of_which_none_was_seen_are_resumed_with_the_ack():
    told: list[StreamState] = []
    acks = [{"type": "subscribed", "seq": 5}, {"type": "subscribed", "seq": 5, "after": 5}]
    async with gateway(
        says(acks[0], asks=0, then=(1012, "")),
        says(acks[1], asks=0, then=(1008, "")),
    ) as server:
        with pytest.raises(Disconnected):
            await take(server.client(api_key="k", on_state=told.append).trade_events(), 1)
    assert StreamState("resumed", "/ws/trade", position=5) in told


async def test_an_exception_in_on_state_reaches_the_caller_with_its_state():
    def fail(state):
        raise ValueError("boom")

    async with gateway(says(TICK)) as server:
        with pytest.raises(CallbackError) as caught:
            await take(server.client(on_state=fail).realtime(["000001.SZ"]), 1)
    assert caught.value.frame == StreamState("connecting", "/ws/realtime", attempt=1)


async def test_every_stream_opts_in_also_without_a_subprotocol():
    async with gateway(says(TICK)) as server:
        assert await take(server.client().realtime(["000001.SZ"]), 1) == [TICK]
        assert server.connections[0].request.headers["Sec-WebSocket-Protocol"] == "qmt.v1.json"
        assert server.connections[0].subprotocol is None
    async with gateway(says({"type": "welcome"}, TICK), subprotocols=["qmt.v1.json"]) as server:
        assert await take(server.client().realtime(["000001.SZ"]), 1) == [TICK]
        assert server.connections[0].subprotocol == "qmt.v1.json"


async def test_options_are_sent_where_they_are_given():
    options = {"fields": ["lastPrice", "volume"], "max_rate_ms": 500, "mode": "latest", "snapshot": False}
    asked = []

    async def script(connection):
        asked.append(json.loads(await connection.recv()))
        await connection.send(json.dumps(TICK))
        await connection.wait_closed()

    async with gateway(script) as server:
        c = server.client()
        await take(c.realtime(["000001.SZ"], **options), 1)
        await take(c.whole_quote(["SH"], mode="all"), 1)
        await take(c.l2_thousand(["000001.SZ"], 20, fields=iter(["time"])), 1)
        for subscribe, arguments in (
            (c.subscribe_realtime, {"stocks": ["000001.SZ"], "period": "1m"}),
            (c.subscribe_whole_quote, {"codes": ["SH"]}),
            (c.subscribe_l2_thousand, {"stocks": ["000001.SZ"], "gear_num": 5}),
        ):
            with pytest.raises(CallbackError):
                await subscribe(callback=fail, **arguments, **options)
    assert asked == [
        {"stocks": ["000001.SZ"], "period": "tick", **options},
        {"codes": ["SH"], "mode": "all"},
        {"stocks": ["000001.SZ"], "gear_num": 20, "fields": ["time"]},
        {"stocks": ["000001.SZ"], "period": "1m", **options},
        {"codes": ["SH"], **options},
        {"stocks": ["000001.SZ"], "gear_num": 5, **options},
    ]


def fail(frame: object) -> None:
    raise ValueError("boom")


def test_an_option_that_does_not_exist_is_named():
    with pytest.raises(TypeError, match="unknown option 'max_rate'; expected one of fields, max_rate_ms"):
        QMTClient("host").realtime(["000001.SZ"], max_rate=500)


@pytest.mark.parametrize("fields", ["lastPrice", []])
def test_fields_must_be_a_list_and_not_empty(fields):
    with pytest.raises(BadRequest, match="fields must be a non-empty list of names"):
        QMTClient("host").whole_quote(["SH"], fields=fields)


# The position that survives the program.


def saved_seq(path: Path) -> int:
    return json.loads(path.read_text(encoding="utf-8"))["seq"]


async def test_the_next_run_goes_on_where_the_last_one_ended(tmp_path):
    state = tmp_path / "state.json"
    seen = []

    def see(upto):
        def callback(frame):
            if frame["seq"] > upto:
                raise StopIteration
            seen.append(frame["seq"])

        return callback

    async with gateway(
        says({"type": "subscribed", "seq": 6}, event(7), event(8), event(9), asks=0),
        says({"type": "subscribed", "seq": 9, "after": 7}, event(8), event(9), event(10), asks=0),
    ) as server:
        c = server.client(api_key="k")
        for upto in (8, 9):
            with pytest.raises(CallbackError):
                await c.subscribe_trade_events(see(upto), state=str(state))
            # Not the one whose callback failed.
            assert saved_seq(state) == upto
        assert server.targets == ["/ws/trade", "/ws/trade?after=7"]
    assert seen == [7, 8, 9]


async def test_in_a_loop_an_event_is_seen_when_the_next_one_is_asked_for(tmp_path):
    state = tmp_path / "state.json"
    async with gateway(says(event(7), event(8), asks=0)) as server:
        assert len(await take(server.client(api_key="k").trade_events(state=state), 2)) == 2
    assert saved_seq(state) == 7


async def test_while_a_callback_runs_the_file_is_behind_it(tmp_path):
    state = tmp_path / "state.json"
    began = asyncio.Event()

    async def stall(frame):
        if frame["seq"] == 8:
            began.set()
            await asyncio.Event().wait()

    async with gateway(says(event(7), event(8), asks=0)) as server:
        task = asyncio.ensure_future(server.client(api_key="k").subscribe_trade_events(stall, state=state))
        await began.wait()
        assert saved_seq(state) == 7
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert saved_seq(state) == 7


async def test_the_client_reads_on_while_a_callback_runs(monkeypatch):
    monkeypatch.setattr(backlog, "PATIENCE", 0.0)
    was_read = asyncio.Event()
    told: list[StreamState] = []
    got = []

    async def script(connection):
        await connection.recv()
        for number in range(10_001):
            await connection.send(json.dumps({f"{number % 10:06}.SZ": [{"time": number, "pad": "x" * 500}]}))
        # The answer comes after everything before it was read, although the callback has not returned.
        await (await connection.ping())
        was_read.set()
        await connection.send(json.dumps({"type": "skipped", "count": 7, "reason": "slow_client"}))
        await connection.close(1000)

    async def callback(frame):
        got.append(frame)
        await was_read.wait()

    async with gateway(script) as server:
        await server.client(on_state=told.append).subscribe_realtime(["000000.SZ"], callback)
    times = [records[0]["time"] for frame in got for records in frame.values()]
    assert sorted(times[-10:]) == list(range(9991, 10_001)), "the newest of each code"
    missed = 10_001 - len(got)
    states = [state for state in told if state.state in ("lagging", "skipped", "caught_up")]
    assert [states[0].state, states[-1].state] == ["lagging", "caught_up"]
    assert sum(state.count for state in states if state.state == "skipped") == missed + 7
    assert states[-1].count == missed + 7
    assert {state.reason for state in states} == {"slow_callback", "slow_client"}


@pytest.mark.parametrize("kind", ["all", "trade"])
async def test_what_must_not_be_left_out_waits_in_order_and_bounded(kind, monkeypatch):
    monkeypatch.setattr(backlog, "PATIENCE", 0.0)
    monkeypatch.setattr(backlog, "ALL_BYTES", 10_000)
    largest = 0

    class Watched(backlog.Backlog):
        def put(self, frame, now):
            nonlocal largest
            super().put(frame, now)
            largest = max(largest, self.size)

    monkeypatch.setattr(client, "Backlog", Watched)
    sent = [{"type": "order", "seq": number, "data": {"pad": "x" * 500}} for number in range(1, 1001)]
    if kind == "all":
        sent = [{"000001.SZ": [frame["data"] | {"time": frame["seq"]}]} for frame in sent]
    got = []
    told: list[StreamState] = []

    async def callback(frame):
        got.append(frame)
        await asyncio.sleep(0)

    asks = int(kind == "all")
    async with gateway(says(*sent, asks=asks, then=(1000, ""))) as server:
        c = server.client(api_key="k", on_state=told.append)
        if kind == "all":
            await c.subscribe_realtime(["000001.SZ"], callback, mode="all")
        else:
            await c.subscribe_trade_events(callback)
    assert got == sent
    assert 10_000 < largest < 11_500
    assert {"lagging", "caught_up"} < {state.state for state in told}
    assert "skipped" not in {state.state for state in told}


async def test_a_callback_that_never_awaits_leaves_the_loop_turns_to_read(monkeypatch):
    monkeypatch.setattr(reader, "_SLICE", 0.0)
    turns = 0
    at_turn = []

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with gateway(says(*[TICK] * 100, then=(1000, ""))) as server:
        counting = asyncio.ensure_future(count())
        await server.client().subscribe_realtime(["000001.SZ"], lambda frame: at_turn.append(turns))
        counting.cancel()
    assert len(set(at_turn)) == 100


async def test_a_position_is_that_of_the_callback_and_not_what_was_read(tmp_path):
    state = tmp_path / "state.json"
    was_read = asyncio.Event()
    events = [event(number) for number in range(7, 40)]

    async def script(connection):
        for each in events:
            await connection.send(json.dumps(each))
        await (await connection.ping())
        was_read.set()
        await connection.wait_closed()

    async def stall(frame):
        if frame["seq"] == 9:
            await was_read.wait()
            raise LookupError

    async with gateway(script) as server:
        with pytest.raises(CallbackError):
            await server.client(api_key="k").subscribe_trade_events(stall, state=state)
    assert saved_seq(state) == 8


async def test_a_stream_that_ends_leaves_no_task():
    before = asyncio.all_tasks()
    async with gateway(says(TICK)) as server:
        frames = server.client().realtime(["000001.SZ"])
        await anext(frames)
        reading = {task for task in asyncio.all_tasks() - before if "Reader" in repr(task.get_coro())}
        assert len(reading) == 1
        await frames.aclose()
        assert not reading & asyncio.all_tasks()


async def test_a_position_is_written_although_no_event_follows(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bookmark, "SAVE_SECONDS", 0.05)
    state = tmp_path / "state.json"

    async def script(connection):
        for last in (8, 10):
            await connection.send(json.dumps(event(last - 1)))
            await connection.send(json.dumps(event(last)))
            await until(lambda last=last: state.exists() and saved_seq(state) == last)
        with full_disk():
            await connection.send(json.dumps(event(11)))
            await until(lambda: "position 11 cannot be written" in caplog.text)
        await until(lambda: saved_seq(state) == 11)
        await connection.close(1008)

    async with gateway(script) as server:
        with pytest.raises(Disconnected):
            await server.client(api_key="k").subscribe_trade_events(len, state=state)


async def test_a_position_is_written_before_any_event_was_seen(tmp_path):
    state = tmp_path / "state.json"
    acknowledged = says({"type": "subscribed", "seq": 41}, asks=0, then=(1008, ""))
    async with gateway(acknowledged, acknowledged) as server:
        c = server.client(api_key="k")
        for _ in range(2):
            with pytest.raises(Disconnected):
                await c.subscribe_trade_events(print, state=state)
        assert server.targets == ["/ws/trade", "/ws/trade?after=41"]


async def test_the_file_wins_over_after(tmp_path):
    state = tmp_path / "state.json"
    refused = says(asks=0, then=(1008, ""))
    async with gateway(refused) as server:
        c = server.client(api_key="k")
        for after in (3, 99):
            with pytest.raises(Disconnected):
                await c.subscribe_trade_events(print, after=after, state=state)
        assert server.targets == ["/ws/trade?after=3"] * 2


async def test_a_file_of_another_gateway_or_in_no_folder_is_refused_at_once(tmp_path):
    state = tmp_path / "state.json"
    state.write_text('{"server": "host:8000", "seq": 7}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"state: .* holds a position at host:8000, .* not one at host:8001"):
        QMTClient("host", 8001).trade_events(state=state)
    with pytest.raises(ConfigError, match="state: there is no folder"):
        QMTClient("host").trade_events(state=tmp_path / "nowhere" / "state.json")


async def test_an_unknown_position_is_reported_with_the_oldest_one(tmp_path):
    state = tmp_path / "state.json"
    expired = {"type": "error", "code": "resume_expired", "error": "gone", "oldest": 20, "newest": 30, "retry": False}
    async with gateway(says(expired, asks=0)) as server:
        state.write_text(json.dumps({"server": f"127.0.0.1:{server.port}", "seq": 7}), encoding="utf-8")
        with pytest.raises(ServerError, match="resume_expired: gone") as caught:
            await server.client(api_key="k").subscribe_trade_events(print, state=state)
    assert caught.value.frame["oldest"] == 20
    assert saved_seq(state) == 7


async def test_a_wrong_key_is_told_at_once():
    told = {"type": "error", "code": "unauthorized", "error": "wrong key", "retry": False}
    async with gateway(says(told, asks=0, then=(1008, "unauthorized: wrong key"))) as server:
        with pytest.raises(Disconnected, match="unauthorized: wrong key") as caught:
            await server.client(api_key="wrong").subscribe_trade_events(print)
        assert caught.value.code == 1008
        assert len(server.connections) == 1


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (403, 1), (503, 2)])
async def test_a_handshake_is_tried_again_unless_the_key_is_rejected(status, attempts):
    asked = []

    def refuse(connection, request):
        asked.append(request.path)
        return connection.respond(status, "no") if len(asked) < 2 else None

    async with gateway(says(TICK), process_request=refuse) as server:
        frames = server.client().realtime(["000001.SZ"])
        if attempts == 1:
            with pytest.raises(Disconnected, match=f"cannot connect to ws://.*/ws/realtime: .*{status}"):
                await take(frames, 1)
        else:
            assert await take(frames, 1) == [TICK]
    assert len(asked) == attempts


async def test_a_host_that_is_not_there_is_told_after_a_while(caplog, monkeypatch):
    # The last wait does not reach beyond connect_timeout.
    monkeypatch.setattr(stream_module, "backoff", lambda failures, jitter: math.inf)
    with socket.socket() as bound:
        # Bound but not listening: refuses connections, and nobody else can take the port.
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        with pytest.raises(Disconnected, match=f"cannot connect to ws://127.0.0.1:{port}/ws/realtime") as caught:
            await QMTClient("127.0.0.1", port, connect_timeout=0.1).subscribe_realtime(["000001.SZ"], print)
    assert caught.value.code is None
    assert isinstance(caught.value.__cause__, OSError)
    assert len(caplog.records) == 1, "one warning, however many attempts"


async def test_a_host_that_never_answers_is_told_after_a_while(monkeypatch):
    monkeypatch.setattr(client, "_OPEN_TIMEOUT", math.inf)
    # The kernel accepts the TCP connection, and that is all.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        c = QMTClient("127.0.0.1", silent.getsockname()[1], connect_timeout=0.1)
        with pytest.raises(Disconnected, match="timed out"):
            await c.subscribe_realtime(["000001.SZ"], print)


@pytest.mark.parametrize("patience", [10.0, math.inf])
async def test_a_script_may_start_before_its_gateway(patience, monkeypatch):
    waited = asyncio.Event()
    sleep = asyncio.sleep

    async def tell(delay):
        waited.set()
        await sleep(delay)

    monkeypatch.setattr(client.asyncio, "sleep", tell)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        c = QMTClient("127.0.0.1", bound.getsockname()[1], connect_timeout=patience)
        first = asyncio.ensure_future(take(c.realtime(["000001.SZ"]), 1))
        await waited.wait()
        async with serve(Gateway(says(TICK)).play, sock=bound):
            assert await first == [TICK]


async def test_a_frame_of_many_megabytes_arrives():
    big = {"000001.SZ": [{"askVolume": [123_456] * 1_000_000}]}
    async with gateway(says(big)) as server:
        assert await take(server.client().l2_thousand(["000001.SZ"]), 1) == [big]


async def test_a_frame_beyond_the_limit_is_an_error_and_not_a_loop(monkeypatch):
    monkeypatch.setattr(client, "FRAME_BYTES", 1000)
    async with gateway(says("x" * 1001)) as server:
        with pytest.raises(Disconnected) as caught:
            await take(server.client().realtime(["000001.SZ"]), 1)
        assert caught.value.code == 1009
        assert len(server.connections) == 1


@pytest.mark.parametrize("text", ["not json", "[1]"])
async def test_a_server_that_is_no_gateway_is_an_error(text):
    async with gateway(says(text)) as server:
        with pytest.raises(Disconnected, match="the server sent a frame that is not"):
            await take(server.client().realtime(["000001.SZ"]), 1)


async def test_an_exception_in_a_callback_reaches_the_caller_with_its_frame():
    def fail(frame):
        raise ValueError("boom")

    async with gateway(says(TICK)) as server:
        with pytest.raises(CallbackError) as caught:
            await server.client().subscribe_realtime(["000001.SZ"], fail)
        assert caught.value.frame == TICK
        assert isinstance(caught.value.__cause__, ValueError)
        await server.ended.wait()
        assert server.connections[0].close_code == 1000


async def test_an_async_callback_is_awaited_before_the_next_frame():
    steps = []

    async def callback(frame):
        steps.append(("begin", frame["n"]))
        await asyncio.sleep(0)
        steps.append(("end", frame["n"]))
        if frame["n"] == 2:
            raise LookupError

    async with gateway(says({"n": 1}, {"n": 2}, {"n": 3})) as server:
        with pytest.raises(CallbackError) as caught:
            await server.client().subscribe_whole_quote(["SH"], callback)
    assert caught.value.frame == {"n": 2}
    assert steps == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]


async def test_a_refused_code_is_told_and_the_others_are_served(caplog):
    told = []
    async with gateway(says(UNKNOWN, TICK)) as server:
        c = server.client(on_error=told.append)
        assert await take(c.realtime(["999999.SZ", "000001.SZ"]), 1) == [TICK]
    assert told == [UNKNOWN]
    assert "unknown_symbol: no such code" in caplog.text
    assert "999999.SZ" in caplog.text


async def test_a_refusal_is_forgotten_when_the_connection_is():
    other = UNKNOWN | {"symbol": "000001.SZ", "code": "not_entitled"}
    async with gateway(says(UNKNOWN, then=(1012, "")), says(other, TICK)) as server:
        assert await take(server.client().realtime(["999999.SZ", "000001.SZ"]), 1) == [TICK]


async def test_a_formula_that_is_refused_for_now_is_asked_for_again():
    refusal = {"type": "error", "code": "internal", "error": "no", "stock_code": "000001.SZ", "retry": True}
    value = {"type": "formula_update", "seq_id": 1, "data": {}}
    async with gateway(says(refusal), says(value)) as server:
        assert await take(server.client().formula("MA", "000001.SZ"), 1) == [value]


async def test_a_refused_request_is_an_error():
    refusal = {"type": "error", "code": "unsupported_period", "error": "unknown period '3x'", "retry": False}
    async with gateway(says(refusal, then=(1008, ""))) as server:
        with pytest.raises(ServerError, match="unknown period '3x'") as caught:
            await server.client().subscribe_realtime(["000001.SZ"], print, "3x")
    assert (caught.value.code, caught.value.error) == ("unsupported_period", "unknown period '3x'")
    assert caught.value.frame == refusal


async def test_a_slow_client_that_was_told_so_comes_back():
    slow = {"type": "error", "code": "slow_client", "error": "too slow", "retry": True}
    event = {"type": "order", "seq": 1, "data": {}}
    async with gateway(says(slow, asks=0, then=(1013, "slow_client")), says(event, asks=0)) as server:
        assert await take(server.client(api_key="k").trade_events(), 1) == [event]


async def test_a_download_returns_when_it_is_done():
    progress = {"finished": 1, "total": 1, "stockcode": "000001.SZ", "message": ""}
    got = []
    async with gateway(drop, says(progress, {"status": "done"}, then=(1000, ""))) as server:
        await server.client().subscribe_download_progress(["000001.SZ"], "1d", got.append, "20240101", "20240201")
    assert got == [progress, {"status": "done"}]


async def test_a_failed_download_is_an_error():
    end = {"status": "error", "code": "upstream_refused", "error": "2 codes failed", "failed": {"a": "b"}}
    async with gateway(says(end, then=(1011, ""))) as server:
        with pytest.raises(ServerError, match="upstream_refused: 2 codes failed") as caught:
            await server.client().subscribe_download_progress(["000001.SZ"], "1d", print)
    assert caught.value.frame == end


async def test_a_formula_delivers_values_only():
    value = {"type": "formula_update", "seq_id": 3, "formula_name": "MA", "stock_code": "000001.SZ", "data": {}}
    got = []

    async def callback(frame):
        got.append(frame)

    async with gateway(says({"action": "subscribed", "seq_id": 3}, value, then=(1000, ""))) as server:
        await server.client().subscribe_formula("MA", "000001.SZ", callback)
    assert got == [value]


async def flood(connection: ServerConnection) -> None:
    """Script: send without end, more than a client that does not read can be sent."""
    await connection.recv()
    text = json.dumps(TICK | {"pad": "x" * 10_000})
    while True:
        await connection.send(text)


async def test_leaving_the_loop_closes_the_socket_cleanly():
    async with gateway(flood) as server:
        async for _ in server.client().realtime(["000001.SZ"]):
            break
        await server.ended.wait()
        assert server.connections[0].close_code == 1000


async def test_cancelling_closes_the_socket_cleanly():
    called = asyncio.Event()

    async def stall(frame):
        called.set()
        await asyncio.Event().wait()

    async with gateway(flood) as server:
        task = asyncio.ensure_future(server.client().subscribe_realtime(["000001.SZ"], stall))
        await called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await server.ended.wait()
        assert server.connections[0].close_code == 1000


async def test_a_second_cancellation_does_not_wait_for_a_lost_server(monkeypatch):
    monkeypatch.setattr(client, "_CLOSE_TIMEOUT", math.inf)
    opened: list[ClientConnection] = []
    connect = client.connect

    async def recorded(*args, **options):
        opened.append(await connect(*args, **options))
        return opened[0]

    monkeypatch.setattr(client, "connect", recorded)

    async def deaf(connection):
        connection.transport.pause_reading()
        await connection.send(json.dumps(TICK))
        await connection.wait_closed()

    async with gateway(deaf, close_timeout=0.01) as server:
        called = asyncio.Event()
        task = asyncio.ensure_future(server.client().subscribe_realtime(["000001.SZ"], lambda frame: called.set()))
        await called.wait()
        task.cancel()
        while opened[0].state is not State.CLOSING:  # noqa: ASYNC110 - websockets has no event for it
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await opened[0].wait_closed()


async def test_a_caller_that_does_not_read_slows_the_server_not_memory(monkeypatch):
    # The answer to the close frame is behind everything that was not read.
    monkeypatch.setattr(client, "_CLOSE_TIMEOUT", math.inf)
    sent = 0

    async def script(connection):
        nonlocal sent
        await connection.recv()
        text = json.dumps({"pad": "x" * 1_000_000})
        while True:
            try:
                async with asyncio.timeout(0.3):
                    await connection.send(text)
            except TimeoutError:
                return
            sent += 1

    # 16 frames in websockets, and what the kernel's two socket buffers hold.
    async with gateway(script, ping_interval=None) as server:
        frames = server.client().realtime(["000001.SZ"])
        async with aclosing(frames):
            await anext(frames)
            await server.ended.wait()
    assert 1 <= sent < 100


def test_a_loop_left_at_the_end_of_the_program_leaves_nothing_open():
    """The event loop finalizes the iterator, and that is cancelled half way."""

    async def main():
        async with gateway(flood) as server:
            async for _ in server.client().realtime(["000001.SZ"]):
                return

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(main())
        gc.collect()
    assert not caught


@pytest.fixture
def certificate(tmp_path) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("this machine has no openssl to make a certificate with")
    pem = tmp_path / "localhost.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2".split()
    named = (
        "-subj /CN=localhost -addext subjectAltName=DNS:localhost -addext keyUsage=digitalSignature,keyCertSign".split()
    )
    key = tmp_path / "key.pem"
    subprocess.run([openssl, *made, *named, "-keyout", key, "-out", pem], check=True, capture_output=True)
    pem.write_text(key.read_text(encoding="ascii") + pem.read_text(encoding="ascii"), encoding="ascii")
    return pem


async def test_tls_takes_a_private_authority(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with gateway(says(TICK), ssl=context) as server:
        private = QMTClient("localhost", server.port, tls=trusting)
        assert await take(private.realtime(["000001.SZ"]), 1) == [TICK]
        with pytest.raises(Disconnected, match="certificate"):
            await take(
                QMTClient("localhost", server.port, tls=True, connect_timeout=math.inf).realtime(["000001.SZ"]), 1
            )


async def test_no_proxy_is_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    async with gateway(says(TICK)) as server:
        assert await take(server.client().realtime(["000001.SZ"]), 1) == [TICK]


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
async def test_an_ipv6_host_is_reached():
    played = Gateway(says(TICK))
    try:
        server = await serve(played.play, "::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with server:
        assert await take(QMTClient("::1", port_of(server)).realtime(["000001.SZ"]), 1) == [TICK]


# The public names.


def test_all_is_complete():
    structs = {name for name, value in vars(messages).items() if isinstance(value, type) and not name.startswith("_")}
    structs = {name for name in structs if issubclass(getattr(messages, name), msgspec.Struct)}
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    raised = {name for name in raised if issubclass(getattr(errors, name), QMTBridgeError)}
    builders = {name for name in vars(topics) if name.endswith("_topic")} - {"parse_topic", "shown_topic"}
    others = {"FormulaSpec", "Frame", "QMTClient", "StreamState", "__version__", "subscribe"}
    assert set(qmt_bridge.__all__) == structs | raised | builders | others
    assert qmt_bridge.__all__ == sorted(qmt_bridge.__all__)
    assert set(qmt_bridge.__all__) <= set(dir(qmt_bridge))


@pytest.mark.parametrize("name", qmt_bridge.__all__)
def test_every_public_name_is_there(name):
    assert getattr(qmt_bridge, name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qmt_bridge.nothing


@pytest.mark.parametrize(
    ("name", "absent"),
    [("Tick", ["zmq", "websockets", "asyncio"]), ("QMTClient", ["zmq"]), ("subscribe", ["websockets"])],
)
def test_neither_side_loads_the_others_library(name, absent):
    program = f"import sys; from qmt_bridge import {name}; print([m for m in {absent} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
