"""The strategy of the full terminal in a stand-in of the terminal on CPython 3.6, against a listener for pushers."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.authority import Authority
from tests.support.programs import Running, programs
from tests.support.push_listener import Listener
from tests.support.strategies import ACCOUNT, Terminal, loaded
from tests.support.strategies import strategy as text
from tests.support.waiting import wait_for

TICK = {"kind": "quote", "code": "600519.SH", "period": "tick"}


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    with programs() as start:
        yield start


@pytest.fixture
def feeder() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def test_the_hello_says_what_the_terminal_has(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)

    hello = feeder.find(lambda line: line.get("type") == "hello")

    assert hello == {
        "type": "hello",
        "protocol": 1,
        "name": "bigqmt",
        "kinds": ["quote", "whole", "l2", "formula", "download", "trade"],
        "accounts": [ACCOUNT],
        "simulated": False,
        "history": True,
    }
    terminal.check()


def test_each_topic_has_data_or_a_refusal(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    wait_for(lambda: feeder.hellos)

    tick = feeder.want(**TICK)
    hour = feeder.want(kind="quote", code="600519.SH", period="60m")
    level2 = feeder.want(kind="quote", code="600519.SH", period="l2order")
    nothing = feeder.want(kind="quote", code="999999.SZ", period="tick")
    half = feeder.want(kind="quote", code="600519.SH", period="3m")
    market = feeder.want(kind="whole", code="SH")
    single = feeder.want(kind="whole", code="000001.SZ")
    absent = feeder.want(kind="whole", code="HK")
    depth = feeder.want(kind="l2", code="600519.SH", gear_num=0)
    formula = feeder.want(
        kind="formula",
        formula_name="MA",
        stock_code="000001.SZ",
        period="1d",
        count=-1,
        dividend_type="none",
        params={},
    )

    wait_for(lambda: len(feeder.of(tick)) > 2)
    assert [line["data"]["volume"] for line in feeder.of(tick)] == sorted(
        {line["data"]["volume"] for line in feeder.of(tick)}
    )
    assert feeder.first(tick)["data"]["transactionNum"] is None
    assert feeder.first(hour) == {"type": "accept", "topic": hour}
    wait_for(lambda: len(feeder.of(hour)) > 1)
    wait_for(lambda: len(feeder.of(market)) > 1)
    assert sorted(feeder.first(market)["data"]) == ["000001.SH", "600000.SH", "600519.SH", "601898.SH"]
    assert feeder.first(market)["more"] is False
    assert list(feeder.first(single)["data"]) == ["000001.SZ"]
    wait_for(lambda: len(feeder.of(formula)) > 1)
    assert list(feeder.of(formula)[1]["data"]) == ["timelist", "outputs"]
    assert {
        name: feeder.first(topic)["code"]
        for name, topic in {
            "level2": level2,
            "nothing": nothing,
            "half": half,
            "absent": absent,
            "depth": depth,
        }.items()
    } == {
        "level2": "upstream_refused",
        "nothing": "unknown_symbol",
        "half": "unsupported_period",
        "absent": "upstream_refused",
        "depth": "unsupported_sdk",
    }
    terminal.check()


def identities(feeder: Listener) -> list[str]:
    return [line["id"] for line in feeder.events()]


def test_orders_and_fills_are_events(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    feeder.find(lambda line: line.get("type") == "accounts")

    terminal.tell("order", "fill", "fill", "error")

    wait_for(lambda: feeder.events("position") and len(feeder.events("asset")) > 1)
    assert [line["data"]["order_status"] for line in feeder.events("order")] == [50, 55, 56]
    assert [line["data"]["traded_id"] for line in feeder.events("trade")] == ["T1", "T2"]
    assert feeder.events("position")[-1]["data"]["volume"] == 200
    (error,) = feeder.events("order_error")
    assert (error["data"]["error_msg"], error["data"]["order_remark"]) == ("资金不足", "r")
    assert feeder.find(lambda line: line.get("type") == "accounts")["accounts"] == [
        {"account": ACCOUNT, "type": "STOCK", "state": "up", "reason": None}
    ]
    terminal.check()


def test_a_repeated_callback_is_no_second_event(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    feeder.find(lambda line: line.get("type") == "accounts")
    terminal.tell("order", "fill", "again", "order")

    wait_for(lambda: len(feeder.events("order")) == 3)

    assert len(set(identities(feeder))) == len(identities(feeder))
    assert len(feeder.events("trade")) == 1


def test_a_killed_terminal_sends_the_day_again(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    feeder.find(lambda line: line.get("type") == "accounts")
    terminal.tell("order", "fill")
    wait_for(lambda: feeder.events("position") and len(feeder.events("asset")) > 1)
    before = set(identities(feeder))
    feeder.lines.clear()

    terminal.kill()
    terminal.again()

    wait_for(lambda: feeder.events("position") and feeder.events("asset"))
    # Each is one that the feeder has, which leaves it out; only states that the terminal no longer lists are missing.
    assert set(identities(feeder)) <= before
    assert all(line["data"]["recovered"] for line in feeder.events("order", "trade"))
    terminal.check()


def test_events_of_an_outage_come_with_the_connection(start: Callable[..., Running], tmp_path: Path) -> None:
    first = Listener()
    terminal = Terminal(start, tmp_path, first.port)
    first.find(lambda line: line.get("type") == "accounts")
    tick = first.want(**TICK)
    first.first(tick)
    first.close()
    terminal.tell("order", "fill", "fill")

    second = Listener(first.port)
    second.demand = [{"type": "subscribe", "topic": TICK}]
    try:
        second.first(TICK)
        wait_for(lambda: len(second.events("trade")) == 2)
        # Also the states that no list has any more.
        assert [line["data"]["order_status"] for line in second.events("order")] == [50, 55, 56]
        wait_for(lambda: second.events("position"))
    finally:
        second.close()
    assert any("断开" in line for line in terminal.running.lines)
    terminal.check()


def test_a_strategy_waits_for_a_feeder(start: Callable[..., Running], tmp_path: Path) -> None:
    first = Listener()
    first.close()
    terminal = Terminal(start, tmp_path, first.port)
    terminal.running.wait_for("连不上 feeder")

    second = Listener(first.port)
    try:
        wait_for(lambda: second.hellos)
    finally:
        second.close()
    assert len([line for line in terminal.running.lines if "连不上 feeder" in line]) == 1


def test_a_replaced_strategy_ends(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    feeder.answer = {"type": "refused", "code": "replaced", "error": "a newer one"}

    terminal = Terminal(start, tmp_path, feeder.port)
    terminal.running.wait_for("接替了本策略")
    terminal.check()


@pytest.mark.parametrize("command", ["rerun", "init"])
def test_a_second_run_ends_the_first(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path, command: str
) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    feeder.first(feeder.want(**TICK))

    terminal.tell(command)
    wait_for(lambda: feeder.hellos == 2)
    feeder.lines.clear()
    feeder.want(**TICK)
    wait_for(lambda: len(feeder.of(TICK)) > 5)

    volumes = [line["data"]["volume"] for line in feeder.of(TICK)]
    assert volumes == sorted(set(volumes))
    terminal.tell("stop")
    assert terminal.answers("done")[-1]["subscriptions"] == 0
    terminal.check()


def test_what_is_not_wanted_is_unsubscribed(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    wait_for(lambda: feeder.hellos)
    topics = [feeder.want(**TICK), feeder.want(kind="whole", code="SH")]
    for topic in topics:
        feeder.first(topic)
    terminal.tell("order")
    assert terminal.answers("done")[-1]["subscriptions"] == 2

    feeder.send(*({"type": "unsubscribe", "topic": topic} for topic in topics))
    last = feeder.first(feeder.want(kind="quote", code="000001.SZ", period="tick"))
    terminal.tell("order")

    assert terminal.answers("done")[-1]["subscriptions"] == 1
    assert last["data"]["time"]
    terminal.check()


def test_downloads_and_history_are_answered(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    Terminal(start, tmp_path, feeder.port)
    wait_for(lambda: feeder.hellos)
    job = {"kind": "download", "job": "1"}
    feeder.send(
        {"type": "download", "topic": job, "stocks": ["000001.SZ", "999999.SZ"], "period": "60m"},
        {"type": "history", "id": 3, "topic": TICK, "from": 0},
        {"type": "history", "id": 4, "topic": {**TICK, "period": "3m"}, "from": 0},
    )

    end = feeder.find(lambda line: line.get("topic") == job and "status" in line["data"])
    history = feeder.find(lambda line: line.get("type") == "history")
    refusal = feeder.find(lambda line: line.get("id") == 4)

    assert [line["data"]["finished"] for line in feeder.of(job)[:2]] == [1, 2]
    assert end["data"]["failed"].keys() == {"999999.SZ"}
    assert (history["id"], [row["volume"] for row in history["data"]], history["more"]) == (3, [0, 1, 2], False)
    assert (refusal["type"], refusal["code"]) == ("refuse", "unsupported_period")


def test_an_older_terminal_serves_quotes_too(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port, "--plain")

    bar = feeder.want(kind="quote", code="600519.SH", period="1m")
    wait_for(lambda: len(feeder.of(bar)) > 1)

    formula = feeder.want(kind="formula", formula_name="MA", stock_code="000001.SZ")
    job = {"kind": "download", "job": "1"}
    feeder.send({"type": "download", "topic": job, "stocks": ["000001.SZ"], "period": "1d"})

    assert feeder.of(bar)[1]["data"]["time"] % 60000 == 0
    assert [feeder.first(topic)["code"] for topic in (formula, job)] == ["unsupported_sdk"] * 2
    terminal.check()


def test_the_editor_has_no_callbacks_but_the_lists(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    terminal = Terminal(start, tmp_path, feeder.port, "--editor", ACCOUNTS=[(ACCOUNT, "stock")])
    wait_for(lambda: feeder.hellos)
    terminal.tell("order", "fill")

    # The connection lists the account.
    feeder.drop()

    wait_for(lambda: feeder.events("trade") and feeder.events("order"))
    terminal.check()


def test_quotes_beyond_the_limit_come_by_the_whole_market(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    Terminal(start, tmp_path, feeder.port, MAX_QUOTES=1)
    wait_for(lambda: feeder.hellos)
    feeder.first(feeder.want(kind="quote", code="600519.SH", period="1m"))

    tick = feeder.want(kind="quote", code="000001.SZ", period="tick")
    bar = feeder.want(kind="quote", code="000001.SZ", period="1m")

    wait_for(lambda: len(feeder.of(tick)) > 2)
    assert feeder.first(bar)["code"] == "symbol_limit"


def test_another_machine_needs_tls_and_a_key(start: Callable[..., Running], tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.issue()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.cert, authority.key)
    listener = Listener(wrap=lambda plain: context.wrap_socket(plain, server_side=True))
    # Sent by the thread that reads: OpenSSL has no connection for two threads.
    listener.demand = [{"type": "subscribe", "topic": TICK}]
    try:
        settings = {"TLS": True, "CA": str(authority.ca)}
        terminal = Terminal(start, tmp_path, listener.port, **settings)
        terminal.running.wait_for("必须同时设置")
        terminal.kill()

        terminal = Terminal(start, tmp_path, listener.port, KEY="0123456789abcdef", **settings)

        assert listener.find(lambda line: line.get("type") == "hello")["key"] == "0123456789abcdef"
        wait_for(lambda: len(listener.of(TICK)) > 2)
        terminal.check()
    finally:
        listener.close()


def test_a_slow_feeder_gets_the_newest_and_every_event(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    terminal = Terminal(start, tmp_path, feeder.port, "--quotes", "0.0005", "--level2")
    feeder.find(lambda line: line.get("type") == "accounts")
    market, prints = feeder.want(kind="whole", code="SH"), feeder.want(kind="quote", code="000001.SZ", period="l2order")
    wait_for(lambda: len(feeder.of(market)) > 5 and len(feeder.of(prints)) > 5)

    feeder.reads.clear()
    terminal.tell("order", "fill", "fill")
    # Until the buffers of both sockets are full.
    count = terminal.answers("done")[-1]["quotes"]
    wait_for(lambda: terminal.tell("nothing") or terminal.answers("done")[-1]["quotes"] > count + 1000)
    feeder.reads.set()
    newest = terminal.answers("done")[-1]["quotes"]

    wait_for(lambda: feeder.of(market)[-1]["data"]["600519.SH"]["volume"] > newest)
    volumes = [line["data"]["600519.SH"]["volume"] for line in feeder.of(market) if "600519.SH" in line["data"]]
    assert volumes == sorted(set(volumes))
    assert max(later - earlier for earlier, later in pairwise(volumes)) > 100
    numbers = [record["entrustNo"] for line in feeder.of(prints) if "data" in line for record in line["data"]]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    wait_for(lambda: len(feeder.events("order")) == 3)
    assert len(feeder.events("trade")) == 2
    terminal.check()


def test_a_line_that_makes_no_sense_costs_that_line(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    terminal = Terminal(start, tmp_path, feeder.port)
    wait_for(lambda: feeder.hellos)

    feeder.send({"type": "subscribe"}, {"type": "subscribe", "topic": {"kind": "quote"}}, {"type": "new"})
    feeder.send_bytes(b"no JSON\n7\n")
    feeder.first(feeder.want(**TICK))

    assert feeder.hellos == 1
    assert not terminal.answers("raised")


@pytest.mark.parametrize(
    ("code", "advice"), [("taken", "KINDS"), ("forbidden", "KEY"), ("unsupported", "同一版本"), ("other", "报告")]
)
def test_a_refusal_comes_with_advice(code: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    strategy = loaded()
    bridge = strategy.Bridge(SimpleNamespace(), [])
    bridge.understand({"type": "refused", "code": code, "error": "why"}, 10.0)

    bridge.turn(SimpleNamespace(), 10.0)

    assert advice in capsys.readouterr().out
    assert (bridge.phase, bridge.retry_at) == ("closed", 40.0)


def test_a_snapshot_is_complete_before_its_changes(
    start: Callable[..., Running], feeder: Listener, tmp_path: Path
) -> None:
    # A code in each turn of the timer, and quotes between them.
    Terminal(start, tmp_path, feeder.port, "--quotes", "0.02", PIECE=1, WORK_SECONDS=0.0001)
    market = feeder.want(kind="whole", code="SH")

    wait_for(lambda: len(feeder.of(market)) > 8)

    lines = feeder.of(market)
    assert [line.get("more") for line in lines[:5]] == [True, True, True, False, None]
    assert [code for line in lines[:4] for code in line["data"]] == [
        "600000.SH",
        "600519.SH",
        "601898.SH",
        "000001.SH",
    ]


def test_a_text_in_gbk_is_read() -> None:
    class Native:
        @property
        def m_strRemark(self) -> str:
            return "备注".encode("gbk").decode("utf-8")

    assert loaded().words(Native(), "m_strRemark") == "备注"


class Unreadable:
    """A native object with a field that raises."""

    m_strAccountID = ACCOUNT
    m_strOrderSysID = "\u00b2"

    @property
    def m_strRemark(self) -> str:
        raise TypeError("No to_python converter found")

    @property
    def m_nVolumeTraded(self) -> int:
        raise RuntimeError("gone")


def queued(**callbacks: Any) -> tuple[Any, Any]:
    """Return the strategy and its bridge, which only queues."""
    strategy = loaded()
    bridge = strategy.BRIDGE = strategy.Bridge(SimpleNamespace(**callbacks), [(ACCOUNT, "STOCK")])
    bridge.phase = "up"
    bridge.lock.acquire()
    return strategy, bridge


def test_what_the_terminal_calls_back_raises_nothing_there(capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[Callable[[Any], None]] = []

    def subscribe(code: str, callback: Callable[[Any], None], **_: Any) -> int:
        kept.append(callback)
        return 1

    strategy, bridge = queued(subscribe_quote=subscribe, get_full_tick=lambda codes: {"600519.SH": {"time": "x"}})
    assert list(bridge.begin({"kind": "quote", "code": "600519.SH", "period": "1d"})) == []
    kept[0]({"600519.SH": {"time": {}}})
    assert "unhashable" in capsys.readouterr().out
    kept[0]({"600519.SH": {"time": 1796004000000}})
    strategy.order_callback(None, Unreadable())
    strategy.deal_callback(None, Unreadable())
    assert "读不出终端对象的字段 m_strRemark" in capsys.readouterr().out
    assert [key[0] for key in bridge.waiting] == ["every", "quote", "trade", "trade"]


@pytest.mark.parametrize("answer", ["error", {"600519.SH": {"time": [1], "x": 2}}, {"600519.SH": {"time": "x"}}])
def test_a_history_that_cannot_be_read_is_refused(answer: Any) -> None:
    _, bridge = queued(get_market_data_ex=lambda *args, **options: answer)
    topic = {"kind": "quote", "code": "600519.SH", "period": "tick"}
    assert list(bridge.tell_history({"id": 7, "topic": topic, "from": 0})) == []
    (line,) = bridge.waiting.values()
    assert {"type": "refuse", "id": 7, "code": "upstream_refused"}.items() <= json.loads(line).items()


def test_an_odd_tick_of_a_market_costs_its_code_only() -> None:
    strategy, bridge = queued()
    wanted = bridge.wanted["SH"] = strategy.Wanted("SH", {"kind": "whole", "code": "SH"})
    odd = {"time": [1], "lastPrice": 2}
    bridge.note_market(wanted, {"600000.SH": {"lastPrice": 1}, "600519.SH": odd, "000001.SZ": {"lastPrice": 3}})
    bridge.fill()
    assert json.loads(bridge.output)["data"] == {"600000.SH": {"lastPrice": 1}}


def test_a_silent_market_is_told_and_its_return(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = loaded()
    bridge = strategy.Bridge(SimpleNamespace(), [])
    bridge.phase = "up"
    # So that what is queued is not sent.
    bridge.lock.acquire()
    wanted = bridge.wanted["SH"] = strategy.Wanted("SH", {"kind": "whole", "code": "SH"})
    clock = SimpleNamespace(now=1796004000.0)  # 10:00:00 in Shanghai.
    monkeypatch.setattr(strategy, "time", SimpleNamespace(time=lambda: clock.now))
    bridge.note_market(wanted, {})

    for now in (1796004010, 1796004031, 1796004032):
        bridge.watch(now)
    clock.now = 1796004033.0
    bridge.note_market(wanted, {})
    bridge.watch(1796004034)

    told = [json.loads(line) for line in bridge.waiting.values()]
    assert [(line["state"], line["reason"], line["data_lost"]) for line in told] == [
        ("stale", "market_silent", False),
        ("up", None, True),
    ]


def test_a_key_is_never_sent_without_tls(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = loaded(text(HOST="192.0.2.1", KEY="0123456789abcdef"))
    bridge = strategy.Bridge(SimpleNamespace(), [])

    bridge.turn(SimpleNamespace(), 10.0)

    assert bridge.sock is None
    assert "TLS = True" in capsys.readouterr().out


def test_a_host_name_is_resolved_at_the_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    found = socket.getaddrinfo("127.0.0.1", 9, 0, socket.SOCK_STREAM)

    def resolve(host: str, *_: object) -> object:
        asked.append(host)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    strategy = loaded(text(HOST="feeder.example", KEY="0123456789abcdef", TLS=True))
    bridge = strategy.Bridge(SimpleNamespace(), [])

    for now in (10.0, 100.0):
        bridge.turn(SimpleNamespace(), now)
        assert bridge.sock is not None
        bridge.broken = "lost"
        bridge.turn(SimpleNamespace(), now + 1)
    bridge.end(SimpleNamespace())

    assert asked == ["feeder.example"]


def test_an_unknown_host_name_is_told_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def fail(host: str, *_: object) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    strategy = loaded(text(HOST="feeder.example", KEY="0123456789abcdef", TLS=True))
    bridge = strategy.Bridge(SimpleNamespace(), [])
    for now in (10.0, 100.0):
        bridge.turn(SimpleNamespace(), now)

    assert (asked, bridge.sock) == (["feeder.example"], None)
    assert capsys.readouterr().out.count("HOST=feeder.example 解析不了") == 1


def test_a_day_of_many_events_is_sent_once(start: Callable[..., Running], feeder: Listener, tmp_path: Path) -> None:
    terminal = Terminal(start, tmp_path, feeder.port, MAX_RECENT=3, LIST_SECONDS=0.2)
    feeder.find(lambda line: line.get("type") == "accounts")
    terminal.tell(*["order"] * 10)
    wait_for(lambda: len(feeder.events("order")) == 10)
    feeder.lines.clear()

    # The list of the account was read again, and told nothing that the connection has.
    terminal.tell("fill")
    wait_for(lambda: feeder.events("position"))
    terminal.tell("fill")
    wait_for(lambda: len(feeder.events("position")) == 2)

    assert len(feeder.events("order")) == len(feeder.events("trade")) == 2


def test_a_replaced_strategy_never_connects_again() -> None:
    with socket.socket() as connection:
        bridge = loaded().Bridge(SimpleNamespace(), [])
        bridge.sock = connection
        bridge.understand({"type": "refused", "code": "replaced", "error": "why"}, 10.0)

        bridge.pump(SimpleNamespace())

        assert (bridge.sock, bridge.ended) == (None, True)


def test_a_backtest_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = loaded()

    strategy.init(SimpleNamespace(do_back_test=True))

    assert strategy.BRIDGE is None
    assert "回测" in capsys.readouterr().out


def test_what_a_connection_was_told_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = loaded()
    bridge = strategy.Bridge(SimpleNamespace(), [(ACCOUNT, "STOCK")])
    bridge.phase = "up"
    # The identity of an asset has the number of changes; an order stays in the list.
    monkeypatch.setattr(strategy, "asset_event", lambda item, *_: (f"asset/{item}", {}))
    monkeypatch.setattr(strategy, "order_event", lambda item, *_: (f"order/{item}", {}))
    monkeypatch.setattr(strategy, "words", lambda *_: "")
    sent: list[str] = []
    monkeypatch.setattr(bridge, "put", lambda _, line: sent.append(line["event"]))

    for number in range(100):
        lists = {"account": [number], "order": ["A"], "deal": [], "position": []}
        bridge.publish_lists(ACCOUNT, "STOCK", lists, "20261130")

    assert (sent.count("asset"), sent.count("order")) == (100, 1)
    assert sum(len(each) for told in bridge.told.values() for each in told) <= 4
