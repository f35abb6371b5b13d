"""The sources of this project, and the one of docs/sources.md, keep the protocol. A further source is a class here."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import native
import pytest
from xtpythonclient import TradeSide, XtOrder, XtTrade, trade_side

from feeder.conformance import SourceConformance
from feeder.push.source import PushSource
from feeder.push.spoken import spell
from feeder.replay.player import Replay
from feeder.sim.simulator import ACCOUNT, Simulator
from feeder.source import DownloadRequest, Source
from feeder.xt.quotes import intervals
from feeder.xt.source import XtSource
from qmt_bridge.config import Config
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import FormulaSpec, Topic, formula_topic, parse_topic
from tests.support.answering_pusher import AnsweringPusher
from tests.support.demo_feed import install, on_path
from tests.support.documents import blocks
from tests.support.paths import FAKES, ROOT
from tests.support.ports import free_port, tcp
from tests.support.pusher import KEY
from tests.support.waiting import SLOWNESS

SECOND = 1_000_000_000
MA = formula_topic(FormulaSpec("MA", "600519.SH", "1d"))
TICKS = Topic("quote/600519.SH/tick/")


def documented() -> type[SourceConformance]:
    """Return the checks of docs/sources.md."""
    (text,) = [
        each.text for each in blocks("docs/sources.md") if (each.section, each.language) == ("Check it", "python")
    ]
    names: dict[str, type[SourceConformance]] = {}
    exec(compile(text, "test_demo_feed.py", "exec"), names)
    return names["TestDemo"]


class TestDocumented(documented()):  # type: ignore[misc]
    seconds = 20.0 * SLOWNESS
    quiet_seconds = 0.1
    slowness = 5.0 * SLOWNESS

    @pytest.fixture(autouse=True)
    def _installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        on_path(install(tmp_path), monkeypatch)
        yield
        sys.modules.pop("demo_feed", None)


class TestSimulator(SourceConformance):
    topics = (TICKS, "quote/600519.SH/1m/", "quote/600519.SH/l2order/", "whole/BJ/", "l2/600519.SH/5/", MA)
    refused: ClassVar = {
        "quote/999999.SZ/tick/": "unknown_symbol",
        "quote/600519.SH/hktdetails/": "unsupported_period",
        "whole/XX/": "unknown_symbol",
    }
    good_download = DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")
    bad_download = DownloadRequest(("600519.SH",), "l2order", "", "")
    seconds = 20.0 * SLOWNESS
    # Longer than its interval.
    quiet_seconds = 0.4
    slowness = 5.0 * SLOWNESS

    def make_source(self) -> Source:
        return Simulator(Config(sim_interval=0.3, sim_l2_rate=20, sim_order_interval=0.05))


class TestReplay(SourceConformance):
    topics = (TICKS, "whole/SH/", "l2/600519.SH/0/", MA)
    refused: ClassVar = {"quote/000001.SZ/tick/": "unknown_symbol"}
    is_recording = True
    seconds = 20.0 * SLOWNESS
    # Longer than its second of the tape.
    quiet_seconds = 0.2
    slowness = 5.0 * SLOWNESS

    @pytest.fixture(autouse=True)
    def _tape(self, tmp_path: Path) -> None:
        """Record each topic, and fills, over ten minutes, of which each check plays the first seconds."""
        began = time.time_ns() - 3600 * SECOND
        self.path = tmp_path / "day.tape"
        writer = TapeWriter(self.path, Recorded(began, session_frame(["quote/", "whole/", "l2/", "formula/"], "1.0")))
        for seq in range(1, 601):
            at = began + seq * SECOND
            tick = {"time": at // 1_000_000, "lastPrice": 10.0 + seq}
            fill = {"account_id": ACCOUNT, "traded_id": f"T{seq}", "traded_volume": 100}
            bodies = {
                TICKS: {"600519.SH": [tick]},
                "whole/SH/": {"600519.SH": tick},
                "l2/600519.SH/0/": {"600519.SH": [{"time": tick["time"], "askPrice": [10.0], "bidPrice": [9.9]}]},
                MA: {
                    "formula_name": "MA",
                    "stock_code": "600519.SH",
                    "data": {"dbt": 0, "timelist": [tick["time"]], "outputs": {"MA1": [10.0]}},
                },
                f"trade/{ACCOUNT}/": {"type": "trade", "seq": seq, "data": fill},
            }
            for topic, body in bodies.items():
                writer.write(at, Frame(Topic(topic), 7, seq, at, at, frames.encode(body)))
        writer.close()

    def make_source(self) -> Source:
        return Replay(Config(source="replay", file=str(self.path), speed=10.0, delay=0.0))


class TestXtquant(SourceConformance):
    topics = (TICKS, "quote/600519.SH/1m/", "whole/SH/", "l2/600519.SH/0/", MA)
    refused: ClassVar = {"quote/600000.SH/1d/": "upstream_refused"}
    good_download = DownloadRequest(("600519.SH", "000001.SZ"), "1d", "", "")
    bad_download = DownloadRequest(("300750.SZ",), "1d", "", "")
    seconds = 30.0 * SLOWNESS
    quiet_seconds = 0.2
    slowness = 5.0 * SLOWNESS

    @pytest.fixture(autouse=True)
    def _terminal(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (FAKES, ROOT))))
        monkeypatch.setenv("FAKE_XT_REFUSE", "300750.SZ")
        monkeypatch.setattr(intervals, "RETRY_FIRST", 0.01)
        monkeypatch.setattr(intervals, "RETRY_LAST", 0.05)
        # What a download brings, which the process for it reads.
        self._history = tmp_path / "history.json"
        self._history.write_text("{}", encoding="utf-8")
        monkeypatch.setenv("FAKE_XT_HISTORY", str(self._history))
        self._ticks: list[dict[str, object]] = []
        self._folder = str(tmp_path)
        self._number = itertools.count(1)
        with native.installed() as terminal:
            self.terminal = terminal
            terminal.refused.add("600000.SH")
            terminal.market = {"600519.SH": native.tick("600519.SH", 0)}
            self.broker: TradeSide = trade_side()
            yield
            self.broker.close()

    def make_source(self) -> Source:
        return XtSource(Config(xt_accounts=(f"{ACCOUNT}:STOCK",), xt_userdata=self._folder))

    def push(self, source: Source, topic: Topic) -> None:
        number, parts = next(self._number), parse_topic(topic)
        match parts.kind:
            case "quote" if parts.detail == "tick":
                tick = native.tick(parts.name, number) | {"time": time.time_ns() // 1_000_000, "pe": 1.5}
                self._ticks.append(tick)
                self._history.write_text(json.dumps({parts.name: self._ticks}), encoding="utf-8")
                self.terminal.push_quote(parts.name, parts.detail, tick)
            case "quote":
                self.terminal.push_quote(parts.name, parts.detail, native.record(parts.name, parts.detail, number))
            case "l2":
                self.terminal.push_quote(parts.name, "l2thousand", native.record(parts.name, "l2thousand", number))
            case "whole":
                self.terminal.push_whole({"600519.SH": native.tick("600519.SH", number)})
            case "formula":
                self.terminal.push_formula("MA", "600519.SH", native.formula(number))

    def break_session(self, source: Source) -> None:
        self.terminal.drop()

    def mend_session(self, source: Source) -> None:
        self.terminal.open()

    def trade(self, source: Source) -> None:
        until = time.monotonic() + self.seconds
        while not any(ACCOUNT in client.accounts for client in self.broker.connected()):
            assert time.monotonic() < until, "the account is not subscribed"
            time.sleep(0.01)
        terms = {"account_id": ACCOUNT, "account_type": 2, "stock_code": "600519.SH", "order_id": 1, "order_type": 23}
        self.broker.push(
            XtOrder(**terms, order_status=56, order_volume=100, price=1700.0, order_time=1733120580),
            XtTrade(**terms, traded_id="T1", traded_price=1700.0, traded_volume=100, traded_time=1733120581),
        )


class TestPush(SourceConformance):
    topics = (TICKS, "quote/600519.SH/1m/", "whole/SH/", "l2/600519.SH/0/", MA)
    refused: ClassVar = {"quote/999999.SZ/tick/": "unknown_symbol"}
    good_download = DownloadRequest(("600519.SH",), "1d", "", "")
    bad_download = DownloadRequest(("999999.SZ",), "1d", "", "")
    seconds = 20.0 * SLOWNESS
    quiet_seconds = 0.2
    slowness = 5.0 * SLOWNESS

    @pytest.fixture(autouse=True)
    def _pusher(self) -> Iterator[None]:
        self._port = free_port()
        self._pusher_of_test = AnsweringPusher(self._port)
        yield
        self._pusher_of_test.close()

    def make_source(self) -> Source:
        return PushSource(Config(source="push", push_addr=tcp(self._port), push_key=KEY))

    def push(self, source: Source, topic: Topic) -> None:
        self._pusher_of_test.push(spell(parse_topic(topic)))

    def break_session(self, source: Source) -> None:
        self._pusher_of_test.drop()

    def mend_session(self, source: Source) -> None:
        self._pusher_of_test.mend()

    def trade(self, source: Source) -> None:
        self._pusher_of_test.trade()
