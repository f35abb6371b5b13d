"""What commands print of a service, a tape or a measurement, in Chinese: nothing English is left, and columns align."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from feeder.events import Unsent
from feeder.journal.journal import Journal
from gateway.admin.verdict import HOPS
from qmt_bridge.commands.administration import LABEL, _hop, _state_text, _why_text
from qmt_bridge.commands.checks import measured_lines
from qmt_bridge.commands.journal import list_text
from qmt_bridge.commands.tapes import info_text
from qmt_bridge.commands.terminal import table as tables
from qmt_bridge.commands.terminal.table import label, labelled
from qmt_bridge.errors import WireVersionError
from qmt_bridge.handshakes import _ADVICE
from qmt_bridge.journal_file import Reader
from qmt_bridge.language import catalog
from qmt_bridge.language.wrapping import width
from qmt_bridge.silence import Silence
from qmt_bridge.tapes.survey import Survey
from qmt_bridge.tapes.tally import Count, Gap, RecordingStart, Tally
from qmt_bridge.tapes.tape import Damage
from qmt_bridge.wire.topics import Topic

# Two English words in a row; names of settings, commands and codes stand alone.
ENGLISH = re.compile(r"(?<![\w/.`-])[A-Za-z']{2,} [a-z]{2,}\b")
LATENCY = {hop: {"p50": 0.001, "p99": 0.002, "count": 7} for hop in HOPS[:4]}
STATE: dict[str, Any] = {
    "source": "sim",
    "simulated": True,
    "feed": "stale",
    "reason": "market_silent",
    "trade": "up",
    "markets": {"SH": 1.25},
    "full": True,
    "accounts": [{"account": "***365", "type": "STOCK", "state": "down", "reason": "why"}],
    "pushers": [
        {"name": "desk", "state": "up", "reason": None, "records": 4711, "conflated": 5, "refused": 3},
        {"name": "ctp", "state": "down", "reason": "pusher_gone", "records": 0, "conflated": 0, "refused": 0},
    ],
    "journal": "the disk has not answered for 7 s",
    "feeder": {"version": "0.1.0", "topics": 3, "upstream": 2, "published_rate": 12.5},
    "store": {"up": True, "age": 0.4, "failure": None, "topics": 3, "stored": 4711, "lag": 0.0042},
    "alerts": {"up": False, "age": 7.2, "open": [], "targets": []},
    "totals": {
        "clients": 2,
        "workers": 1,
        "frames_rate": 9.0,
        "slow_clients": 1,
        "lag": 0.1,
        "gaps_hour": 1,
        "lost_hour": 2,
        "skipped_hour": 3,
    },
    "latency": LATENCY,
    "workers": [
        {"worker": "a3f09c1d", "gateway": "h:1", "clients": 2, "topics": 3, "lag": 0.1}
        | {"messages_rate": 1.0, "frames_rate": 2.0, "waiting_bytes": 0}
    ],
    "events": [
        {"time": 1, "where": "feeder", "text": text}
        for text in (
            "feed is stale: market_silent",
            "the feeder is connected: source sim, state up",
            "account ***365 (STOCK) is down: why",
            "trade journal: the disk has not answered for 7 s; events are only in memory",
            "trade journal: it is written again",
            "/ws/realtime from 10.0.0.7: slow_client after 3.0 s, 7 frames",
        )
    ],
    "missing": ["feeder"],
}
WHY: dict[str, Any] = {
    "code": "600519.SH",
    "verdict": "50 ms late in the feeder, between callback and publication: look at the load of its machine",
    "topic": "quote/600519.SH/tick/",
    "age": 1.0,
    "state": None,
    "messages": 3,
    "missed": 0,
    "client": "a3f09c1d-1",
    "waiting": 0,
    "skipped": 2,
    "hops": [{"hop": HOPS[1], "median": 0.05, "worst": 0.06, "count": 3, "worker": "a3f09c1d"}],
    "late": HOPS[1],
    "lost": None,
    "missing": [],
}


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    catalog.speak("zh")


def survey() -> Survey:
    tally = Tally()
    tally.sources, tally.simulated = ["sim"], True
    tally.first_ns, tally.last_ns = 1, 2
    tally.sessions, tally.session_count = [RecordingStart(("whole/SH/",), "1", 1)], 3
    tally.kinds = {"quote": Count(1234, 99, 3), "download": Count(1, 2, 1)}
    tally.gaps = [Gap("quote/1/", 1, 4, 7, 1), Gap("quote/1/", 1, 4, 2, 1)]
    tally.gap_count, tally.missed = 3, 2
    return Survey(Path("x.tape"), 9, tally, [Damage(3, 4)], 2, 8, 5)


def measured(**changes: Any) -> dict[str, Any]:
    none = {"p50": None}
    return {
        "url": "ws://h",
        "clients": 2,
        "frames": 0,
        "frames_per_second": 0.0,
        "bytes_per_second": 0.0,
        "lost": None,
        "skipped": 1,
        "repeated": 2,
        "unstamped": 3,
        "restarts": 4,
        "rejected": {},
        "trouble": {},
        "latency_ms": {"p50": 1.0, "p99": 2.0},
        "feeder_ms": {"p50": 1.0},
        "gateway_ms": none,
        "server": None,
        "client": {"processes": 2, "busy": 0.95, "sample": 1},
        "machine": {"cpu": "c", "cores": 2, "system": "s", "python": "p"},
        **changes,
    }


def reports() -> list[str]:
    """Return everything that is printed, each a sentence or more."""
    found = survey()
    bench = [*measured_lines(measured()), *measured_lines({**measured(trouble={"x": 2}), "server": SERVER})]
    silent = [Silence(map(Topic, topics)).summary() for topics in (["trade/"], ["quote/"], ["whole/SH/"])]
    where = {"where": "tcp://h:1, tcp://h:2", "names": "market_addr, ask_addr"}
    notices = [text.format(**where) for text in _ADVICE.values()]
    said = ["recorded 1 messages, 2 bytes, of 3 topics on a.tape (4 B), b.tape (5 B); 1 lost in 2 gaps"]
    said += [*map(str, silent), *notices, "the feeder answers: market_addr", *found.faults]
    said += ["quote/600519.SH/tick is taken as quote/600519.SH/tick/: a whole topic ends with a slash"]
    said.append(str(WireVersionError(3, 2)))
    said.append(str(Silence(map(Topic, ["quote/", "whole/", "l2/", "formula/"])).summary()))
    said += ["connection lost: reset, 2 clients; handshake refused: 403, 1 clients", "a client process has ended"]
    drawn = [_state_text(STATE), _state_text(STATE | {"full": False}), _why_text(WHY), info_text(found)]
    return [*drawn, *map(catalog.say, said), *(f"{label(name)} {text}" for name, text in bench)]


SERVER = {"cpu": 0.5, "rss_bytes": 1 << 20, "connection_bytes": 1024.0}


def test_nothing_english_is_left_in_what_a_chinese_user_reads() -> None:
    said = [re.sub(r"\x1b\[[\d;]*m", "", each) for each in reports()]
    assert [found[0] for each in said if (found := ENGLISH.search(each))] == []
    assert "行情 stale: market_silent，交易回报 up" in said[0]
    # A sentence of several parts is not taken for one with a value in front.
    assert "丢失 未知，网关为慢客户端略过 1 帧，重复 2 帧，3 帧没有位置，feeder 重启 4 次" in said
    assert any(each.startswith("tcp://h:1, tcp://h:2 没有回应：feeder 是否在运行") for each in said)
    assert any("写入 a.tape (4 B), b.tape (5 B)；2 处缺口" in each for each in said)
    assert "连接断开：reset, 2 个客户端；握手被拒绝：403, 1 个客户端" in said
    assert all(re.search("[\u4e00-\u9fff]", _hop(hop)) for hop in HOPS)


def test_what_is_said_of_a_journal_is_chinese(tmp_path: Path) -> None:
    path = tmp_path / "journal-sim.sqlite3"
    journal = Journal(path, days=30)
    journal.append(journal.positions.give([Unsent(name, "order", msgspec.Raw(b"{}")) for name in "1212121"], 0))
    # A hole in both accounts and in all of them, an event of another place, one that is none, and numbers that differ.
    for statement in (
        "DELETE FROM event WHERE seq IN (3, 4, 7)",
        "UPDATE event SET body = (SELECT body FROM event WHERE seq = 1) WHERE seq = 2",
        "UPDATE event SET body = x'c1' WHERE seq = 5",
    ):
        journal._database.execute(statement)
    with Reader(path) as reader:
        listed, faults = list_text(reader), list(map(catalog.say, reader.faults()))
    journal.close()
    assert "，其中事件 0.0 MB\n" in listed
    assert not ENGLISH.search(listed.replace(str(path), ""))
    heads = ("账户", "事件数", "首个编号", "末个编号", "可重放起点", "首个事件", "末个事件")
    assert all(head in listed for head in heads)
    # What a message of the decoder says of its bytes stays.
    assert [fault for fault in faults if not re.search("[\u4e00-\u9fff]", fault)] == []
    assert {"有缺口：缺少 3 到 4", "位置 2 的内容自称在位置 1"} <= {*faults}
    assert len(faults) >= 6


def test_state_has_a_line_for_each_pusher() -> None:
    lines = [line.split(None, 1) for line in _state_text(STATE).splitlines()]
    assert [said for name, said in filter(lambda each: len(each) == 2, lines) if name == label("pusher")] == [
        "desk：up，记录 4711 条，合并 5 条，拒绝 3 行",
        "ctp：down (pusher_gone)，记录 0 条，合并 0 条，拒绝 0 行",
    ]


def test_texts_begin_in_one_column_behind_wide_labels() -> None:
    names = ("source", "account", "feeder", "last hour", "")
    lines = labelled([(name, "|") for name in names], LABEL).splitlines()
    assert [width(line[:-1]) for line in lines] == [LABEL] * len(names)
    assert lines[0].startswith("数据源 ")


def test_long_text_goes_on_below_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "pid 1，1 个 worker，http://127.0.0.1:8000/readyz /healthz /metrics"
    lines = labelled([("gateway", text), ("stop", "Ctrl-C")], 9, "  ").splitlines()
    assert lines[0].startswith("  网关     pid 1")
    assert lines[-1] == "  停止     Ctrl-C"
    assert {line[:11] for line in lines[1:-1]} == {" " * 11}
    assert max(map(width, lines)) <= 40
    assert "".join(line[11:] for line in lines[1:-1]).replace(" ", "") in text.replace(" ", "")
    monkeypatch.setattr(tables, "on_terminal", lambda: False)
    assert labelled([("gateway", text)], 9, "  ") == f"  gateway  {text}"


def test_labels_stay_english_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "on_terminal", lambda: False)
    lines = _state_text(STATE).splitlines()
    labels = ["source", "newest", "account", "pusher", "pusher", "journal", "feeder", "store"]
    assert [line.split()[0] for line in lines[:8]] == labels
    assert lines[0] == "source    sim，行情 stale: market_silent，交易回报 up  模拟数据：价格是虚构的"
    assert "hop                   p50     p99     samples" in lines
