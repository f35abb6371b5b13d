"""The strategy of the full terminal in a stand-in of the terminal on CPython 3.6, against a listener for pushers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.programs import Running, programs
from tests.support.push_listener import Listener
from tests.support.strategies import ACCOUNT, Terminal
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

    hello = feeder.find(lambda line: line["type"] == "hello")

    assert hello == {
        "type": "hello",
        "protocol": 1,
        "name": "bigqmt",
        "kinds": ["quote", "whole", "formula", "download", "trade"],
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
