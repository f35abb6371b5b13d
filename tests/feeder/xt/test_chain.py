"""The chain over xtquant's real Python layer: all processes, random events of a session, and the calls into xtquant."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import random
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import native
import pytest
import zmq
from websockets.asyncio.client import connect

from feeder.app import Feeder
from feeder.xt.quotes import intervals, splice
from feeder.xt.quotes.subscriptions import Subscriptions
from feeder.xt.source import XtSource
from qmt_bridge.config import Config
from qmt_bridge.sockets import connect_subscriber
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Kind,
    Topic,
    formula_spec,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    whole_topic,
)
from tests.support.paths import FAKES, ROOT
from tests.support.ports import ANY_ADDRESSES
from tests.support.up import receive, running
from tests.support.waiting import wait_for

# -- Real processes


async def test_a_terminal_is_served_on_all_six_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = ("600519.SH", "000001.SZ", "300750.SZ")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_TICK_MS", "50")
    monkeypatch.setenv("FAKE_XT_TRADE_MS", "50")
    monkeypatch.setenv("FAKE_XT_CODES", ",".join(codes))
    monkeypatch.setenv("FAKE_XT_REFUSE", "300750.SZ")
    monkeypatch.setenv("QMT_BRIDGE_XT_ACCOUNTS", "1000000365:STOCK")
    monkeypatch.setenv("QMT_BRIDGE_XT_USERDATA", str(tmp_path))
    with running(tmp_path / "data", "--source=xtquant", "--workers=1") as up:

        async def ask(path: str, request: dict[str, Any], frames: int) -> list[Any]:
            async with connect(up.url(path), proxy=None, max_size=None) as client:
                await client.send(json.dumps(request))
                return [await receive(client) for _ in range(frames)]

        frames = await ask("/ws/realtime", {"stocks": ["600519.SH", "300750.SZ"], "period": "tick"}, 3)
        [refused] = [frame for frame in frames if "error" in frame]
        assert (refused["code"], refused["symbol"]) == ("upstream_refused", "300750.SZ")
        for frame in frames:
            if frame is not refused:
                [(code, [tick])] = frame.items()
                assert (code, tick) == ("600519.SH", as_json(native.tick(code, number(tick, 3000))))

        frames = await ask("/ws/realtime", {"stocks": ["600519.SH"], "period": "1m"}, 1)
        [(code, [bar])] = frames[0].items()
        assert set(bar) == set(native.record(code, "1m", 0))

        snapshot, news = await ask("/ws/whole_quote", {"codes": ["SZ"]}, 2)
        for ticks in (snapshot, news):
            assert set(ticks) == {"000001.SZ", "300750.SZ"}
            for code, tick in ticks.items():
                assert tick == as_json(native.tick(code, number(tick, 3000)))

        [depths] = await ask("/ws/l2_thousand", {"stocks": ["000001.SZ"]}, 1)
        [(code, [depth])] = depths.items()
        assert code == "000001.SZ"
        assert depth == native.record(code, "l2thousand", depth["time"] - 1733120580630)

        request = {"action": "subscribe", "formula_name": "MA", "stock_code": "000001.SZ", "params": {"n": 5}}
        frames = await ask("/ws/formula", request, 3)
        assert frames[0] == {"action": "subscribed", "seq_id": frames[1]["seq_id"]}
        update = frames[-1]
        assert update["type"] == "formula_update"
        assert (update["formula_name"], update["stock_code"]) == ("MA", "000001.SZ")
        assert set(update["data"]) == set(native.formula(0))

        frames = []
        async with connect(up.url("/ws/download_progress"), proxy=None) as client:
            await client.send(json.dumps({"stocks": ["600519.SH"], "period": "1d"}))
            while not frames or "status" not in frames[-1]:
                frames.append(await receive(client))
        # Progress is conflated, so the end may have replaced it.
        assert frames[-1] == {"status": "done"}
        assert frames[:-1] in ([], [{"finished": 1, "total": 1, "stockcode": "600519.SH", "message": ""}])

        events = {}
        async with connect(up.trade_url, proxy=None) as client:
            while set(events) != {"order", "trade"}:
                event = await receive(client)
                assert set(event) >= {"type", "seq", "data"}
                events[event["type"]] = event["data"]
        assert {data["account_id"] for data in events.values()} == {"1000000365"}
        assert events["order"]["order_status_name"] == "ORDER_SUCCEEDED"
        assert events["trade"]["traded_amount"] == 170000.0


async def test_a_download_ends_when_its_last_websocket_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "calls"
    log.touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_DOWNLOAD", "stall")
    monkeypatch.setenv("FAKE_XT_LOG", str(log))

    def calls(name: str) -> int:
        return sum(line.startswith(name) for line in log.read_text(encoding="utf-8").splitlines())

    with running(tmp_path / "data", "--source=xtquant", "--workers=1", "--grace=0.1") as up:

        def follow() -> connect:
            return connect(up.url("/ws/download_progress"), proxy=None)

        async def begin(client: Any) -> None:
            await client.send(json.dumps({"stocks": ["600519.SH", "000001.SZ"], "period": "1d"}))
            assert await receive(client) == {"finished": 1, "total": 2, "stockcode": "600519.SH", "message": ""}

        async with follow() as first, follow() as second:
            await begin(first)
            await begin(second)
            await first.close()
            async with follow() as third:
                await begin(third)
            # Two of the three clients have left.
            assert (calls("supply_history_data2"), calls("stop_supply_history_data2")) == (1, 0)
        await asyncio.to_thread(wait_for, lambda: calls("stop_supply_history_data2") == 1, lambda: up.text)
        # A client that comes after the cancellation starts a new download.
        async with follow() as fourth:
            await begin(fourth)
            assert calls("supply_history_data2") == 2


async def test_a_terminal_that_hangs_closes_no_client_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = tmp_path / "hanging"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
    monkeypatch.setenv("FAKE_XT_TICK_MS", "50")
    monkeypatch.setenv("FAKE_XT_HANG_FILE", str(hanging))
    with running(tmp_path / "data", "--source=xtquant", "--workers=1", "--xt-hang=1") as up:
        # A short close_timeout: unread ticks would delay the closing handshake.
        async with connect(up.url("/ws/realtime?ctl=1"), proxy=None, close_timeout=0.1) as client:
            await client.send(json.dumps({"action": "subscribe", "id": 1, "stocks": ["600519.SH"]}))

            async def until(condition: Callable[[Any], object]) -> None:
                while not condition(await receive(client)):
                    pass

            await until(lambda frame: "600519.SH" in frame)
            hanging.write_text("subscribe_quote", encoding="utf-8")
            told: list[tuple[str, str | None]] = []

            def note(frame: Any) -> bool:
                if frame.get("type") == "feed":
                    told.append((frame["state"], frame["reason"]))
                return bool(told)

            async def ask() -> None:
                # The stand-in reads the file a moment later, so subscribe other codes until a call hangs.
                for number in range(1000):
                    if told:
                        return
                    request = {"action": "subscribe", "id": number, "stocks": [f"{600000 + number}.SH"]}
                    await client.send(json.dumps(request))
                    await asyncio.sleep(0.02)

            await asyncio.gather(ask(), until(note))
            assert told == [("down", "terminal_hung")]
            hanging.unlink()
            await until(lambda frame: note(frame) and told[-1][0] == "up")
            # A new feeder begins in the state down, without a reason.
            assert {reason for _, reason in told} <= {"terminal_hung", "feeder_absent", None}
            await until(lambda frame: "600519.SH" in frame)
        assert "feeder ended with exit code 75; starting it again" in up.text


def as_json(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as a WebSocket shows it: NaN is null."""
    return {name: None if value != value else value for name, value in record.items()}


def number(tick: dict[str, Any], step: int) -> int:
    """Return the number of an invented record of the stand-ins."""
    return (tick["time"] - 1733118954000) // step


# -- Random events of a session

TICKS = tuple(quote_topic(code) for code in ("600519.SH", "600000.SH", "600036.SH", "000001.SZ", "300750.SZ"))
MARKETS = (whole_topic("SH"), whole_topic("SZ"))
OTHERS = (
    quote_topic("600519.SH", "1m"),
    l2_topic("000001.SZ", 20),
    whole_topic("600519.SH"),
    formula_topic(FormulaSpec("MA", "000001.SZ", params={"n": 5})),
)
TOPICS = (*TICKS, *MARKETS, *OTHERS)
# These topics can never be served.
NEVER = (quote_topic("999999.SH"), quote_topic("888888.SH"))

Native = tuple[str, str, str]


def native_of(topic: Topic) -> Native:
    """Return the native subscription of `topic`, as the stand-ins name it."""
    parts = parse_topic(topic)
    match parts.kind:
        case Kind.WHOLE:
            return "whole", parts.name, ""
        case Kind.L2:
            return "quote", parts.name, "l2thousand"
        case Kind.FORMULA:
            spec = formula_spec(parts)
            return "formula", spec.formula_name, spec.stock_code
        case _:
            return "quote", parts.name, parts.detail


class Consumer:
    """A real ZeroMQ subscriber; closing it simulates a client that ends without unsubscribing."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.socket = connect_subscriber(context, address, None)
        self.topics: set[Topic] = set()

    def subscribe(self, topic: Topic) -> None:
        # ZeroMQ counts subscriptions: two would need two unsubscriptions.
        if topic not in self.topics:
            self.topics.add(topic)
            self.socket.subscribe(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.topics.discard(topic)
        self.socket.unsubscribe(topic)

    def received(self) -> list[tuple[Topic, bytes]]:
        """Return the messages that have arrived."""
        came = []
        while self.socket.poll(0):
            frame = Frame.from_parts(self.socket.recv_multipart())
            came.append((frame.topic, frame.body))
        return came


class RandomSession:
    """A random sequence of events: a real feeder over the stand-ins' terminal, and consumers that come and go."""

    def __init__(self, terminal: native.Terminal, feeder: Feeder, seed: int, single_limit: int) -> None:
        self.terminal = terminal
        self.feeder = feeder
        self.random = random.Random(seed)
        self.single_limit = single_limit
        # Beyond the limit a market would also be held for the topics that can never be served.
        self.topics = (*TOPICS, *NEVER) if single_limit >= len(TOPICS) else TOPICS
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.consumers = [self._consumer() for _ in range(3)]
        self.number = 0
        # Set at each native call.
        self.called = threading.Event()
        terminal.on_call = lambda _: self.called.set()

    def _consumer(self) -> Consumer:
        return Consumer(self.context, self.feeder.publisher.market_addr)

    @property
    def wanted(self) -> set[Topic]:
        return set[Topic]().union(*(consumer.topics for consumer in self.consumers))

    def step(self) -> None:
        """Trigger a random event, and often continue before the feeder has noticed it."""
        consumer = self.random.choice(self.consumers)
        match self.random.choices(("want", "leave", "die", "drop", "return", "refuse", "push"), (8, 4, 1, 2, 3, 2, 2))[
            0
        ]:
            case "want":
                consumer.subscribe(self.random.choice(self.topics))
            case "leave" if consumer.topics:
                consumer.unsubscribe(self.random.choice(sorted(consumer.topics)))
            case "die":
                self.consumers.remove(consumer)
                consumer.socket.close(linger=0)
                self.consumers.append(self._consumer())
            case "drop":
                # Without status events the feeder cannot notice a loss that ends before its next check.
                self.drop(wait=not self.terminal.status_events)
            case "return":
                self.terminal.open()
            case "refuse":
                names = ("600519.SH", "000001.SZ", "SH", "SZ", "MA")
                self.terminal.refused = {"999999.SH", *self.random.sample(names, self.random.randrange(3))}
                self.terminal.failing = {"888888.SH", *self.random.sample(names, self.random.randrange(2))}
            case "push":
                self.push()
        if self.random.random() < 0.5:
            self.called.clear()
            self.called.wait(0.02)

    def drop(self, *, wait: bool) -> None:
        """Close the terminal, and wait until the feeder has noticed if `wait`."""
        self.terminal.drop()
        if wait:
            tried = len(self.terminal.called("connect"))
            wait_for(lambda: len(self.terminal.called("connect")) > tried, "the feeder to notice the loss")

    def push(self) -> None:
        """Push a tick, bar, depth and formula value to every subscription, marked by a number."""
        self.number += 1
        for topic in TOPICS:
            kind, name, detail = native_of(topic)
            if kind == "quote":
                self.terminal.push_quote(name, detail, {"time": self.number})
            elif kind == "formula":
                self.terminal.push_formula(name, detail, {"timelist": [self.number], "outputs": {}})
        self.terminal.push_whole({parse_topic(topic).name: {"time": self.number} for topic in TICKS})

    def fault(self) -> str:
        """Return what is wrong with the native subscriptions; empty if they are exactly the wanted ones."""
        held = Counter(self.terminal.subscriptions())
        wanted = {native_of(topic): topic for topic in self.wanted - set(NEVER)}
        if self.feeder.source.upstream() != held.total():
            return f"upstream is {self.feeder.source.upstream()}, not {held.total()}"
        doubles = {name for name, count in held.items() if count > 1}
        missing, surplus = wanted.keys() - held.keys(), held.keys() - wanted.keys()
        if sum(kind == "quote" for kind, _, _ in held) >= self.single_limit:
            # There is no room for single subscriptions, so the ticks come from a market that is held for them.
            ticks = {name for name in missing if wanted[name] in TICKS}
            markets = {("whole", name[1][-2:], "") for name in ticks}
            missing = (missing - ticks) | (markets - held.keys())
            surplus -= markets
        return f"doubles {doubles}, missing {missing}, surplus {surplus}" if doubles | missing | surplus else ""

    def settle(self) -> None:
        """Wait until exactly the wanted subscriptions are held and every consumer has data; no tick comes twice."""
        wait_for(lambda: not self.fault(), self.fault)
        waiting = {(consumer, topic) for consumer in self.consumers for topic in consumer.topics - set(NEVER)}
        assert waiting
        before, sessions = self.number, len(self.terminal.clients)
        came: Counter[tuple[Consumer, Topic, int]] = Counter()

        def everyone_has_news() -> bool:
            # Push repeatedly: no answer tells when the second consumer of a topic is subscribed.
            self.push()
            for consumer in self.consumers:
                for topic, body in consumer.received():
                    number = newest(body)
                    if number > before:
                        waiting.discard((consumer, topic))
                        came[consumer, topic, number] += topic in TICKS
            return not waiting

        wait_for(
            # The feeder may notice only now that the terminal was closed, and begin a new session.
            lambda: everyone_has_news() and not self.fault(),
            lambda: self.fault() or f"data of {sorted(topic for _, topic in waiting)}",
        )
        if len(self.terminal.clients) == sessions:
            # A new session begins with the last tick again.
            assert [tick for tick, count in came.items() if count > 1] == []

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[native.Terminal]:
    monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(intervals, "RETRY_LAST", 0.03)
    monkeypatch.setattr(intervals, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(intervals, "RETURN_SECONDS", 0.05)
    monkeypatch.setattr(splice, "OVERLAP", 0.1)
    with native.installed() as terminal:
        yield terminal
        assert terminal.escaped == []


@pytest.mark.parametrize("seed", range(20))
def test_random_events_end_with_the_right_subscriptions_and_data(
    terminal: native.Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seed: int
) -> None:
    # Try both kinds of native behaviour, a client that does not reconnect, and a limit of single ticks or none.
    terminal.auto_reconnect, terminal.keeps_subscriptions = [(True, True), (True, False), (False, False)][seed % 3]
    terminal.status_events = seed % 2 == 0
    # Native threads at once, whether a single subscription is answered with the newest tick, and the terminal is asked
    # for it early, in as many pushes as a snapshot may have.
    terminal.dispatchers = (1, 8)[seed % 3 == 1]
    terminal.single_snapshot, terminal.snapshot_pieces = seed % 7 < 3, 1 + seed % 2
    monkeypatch.setattr(intervals, "FIRST_SECONDS", (0.01, 2.0)[seed % 4 == 3])
    # A refused topic is retried after a while, or in the next session.
    asks_again = seed % 4 < 2
    asked: list[Subscriptions] = []
    if asks_again:
        monkeypatch.setattr(intervals, "REFUSED_SECONDS", 0.05)
        subscribe_wanted = Subscriptions.subscribe_wanted
        monkeypatch.setattr(
            Subscriptions, "subscribe_wanted", lambda self: (subscribe_wanted(self), asked.append(self))
        )
    single_limit = 3 if seed % 5 in (1, 3) else 50
    terminal.refused, terminal.failing = {"999999.SH"}, {"888888.SH"}
    terminal.is_open = seed % 5 != 0
    config = Config(
        **ANY_ADDRESSES,
        data_dir=str(tmp_path),
        grace=0.0 if seed % 2 else 0.03,
        xt_single_limit=single_limit,
    )
    feeder = Feeder(config, XtSource(config))
    feeder.start()
    life = RandomSession(terminal, feeder, seed, single_limit)
    try:
        for consumer in life.consumers:
            consumer.subscribe(life.random.choice(TOPICS))
        for _ in range(30):
            life.step()
        terminal.refused, terminal.failing = {"999999.SH"}, {"888888.SH"}
        if not asks_again:
            life.drop(wait=True)
        terminal.open()
        life.settle()
        if asks_again:
            # Retrying a wanted topic does not change the held subscriptions.
            before = len(asked)
            wait_for(lambda: len(asked) > before + 2, "a second question for what was refused")
            life.settle()
        # Room becomes free again, one place at a time.
        for consumer in life.consumers:
            for topic in life.random.sample(sorted(consumer.topics), len(consumer.topics))[1:]:
                consumer.unsubscribe(topic)
                wait_for(lambda: not life.fault(), life.fault)
        if life.wanted - set(NEVER):
            life.settle()
    finally:
        life.close()
        feeder.stop()
    assert terminal.subscriptions() == []


def newest(body: bytes) -> int:
    """Return the largest number that was pushed with a body."""
    return max(
        (int(found) for found in re.findall(r"(?:'time': |'timelist': \[)(\d+)", str(msgspec.json.decode(body)))),
        default=0,
    )


# -- The calls into xtquant

# Our names for modules and objects of xtquant.
OWNERS = {
    "_xtdata": "xtdata",
    "xtdata": "xtdata",
    "_client": "client",
    "xttrader": "xttrader",
    "trader": "xttrader",
    "_xttype": "xttype",
    "center": "xtdatacenter",
}
# The functions of these may be called by their name in a string.
NAMED = re.compile(r"(subscribe|query)_\w+")
ROW = re.compile(r"^\| `(\w+\.\w+)` \| (.+) \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.MULTILINE)


def offered() -> dict[str, set[str]]:
    """Return the functions and classes of each module of the wheel, without importing it, and of its native client."""
    spec = find_spec("xtquant")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    files = {module: Path(spec.submodule_search_locations[0], f"{module}.py") for module in OWNERS.values()}
    files["client"] = FAKES / "datacenter.py"
    with warnings.catch_warnings():
        # The wheel's sources have invalid escapes, which warn when they are compiled.
        warnings.simplefilter("ignore")
        trees = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in files.items()}
    return {
        module: {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for module, tree in trees.items()
    }


def used() -> set[str]:
    """Return the functions and classes of xtquant that the feeder uses, such as ``xtdata.subscribe_quote``."""
    known, used = offered(), set()
    for file in (ROOT / "feeder" / "xt").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value
                module = OWNERS.get(getattr(owner, "attr", getattr(owner, "id", "")))
                if module is not None and node.attr in known[module]:
                    used.add(f"{module}.{node.attr}")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and NAMED.fullmatch(node.value):
                used |= {f"{module}.{node.value}" for module in ("xtdata", "xttrader") if node.value in known[module]}
    return used


def test_the_docs_name_each_call_into_xtquant_and_its_test() -> None:
    rows = ROW.findall((ROOT / "docs" / "xtquant.md").read_text(encoding="utf-8"))
    listed = [call for call, _, _, _ in rows]
    assert len(listed) == len(set(listed))
    assert set(listed) == used()
    for _, _, file, test in rows:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), test
