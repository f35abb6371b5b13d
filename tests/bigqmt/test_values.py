"""Values and identities of the strategy of the full terminal, on CPython 3.6 and on this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from feeder.xt.trading.records import FIELDS
from tests.support.paths import ROOT
from tests.support.strategies import ACCOUNT, python36, strategy

Call = Callable[..., Any]
ORDER = {
    "m_strAccountID": ACCOUNT,
    "m_strInstrumentID": "601898",
    "m_strExchangeID": "SH",
    "m_strInstrumentName": "中煤能源",
    "m_strOrderSysID": "7001",
    "m_nRef": 1090571185,
    "m_nVolumeTotalOriginal": 200,
    "m_dLimitPrice": 7.11,
    "m_nVolumeTraded": 0,
    "m_nOrderStatus": 50,
    "m_nOrderPriceType": 50,
    "m_nOffsetFlag": 49,
    "m_nDirection": 48,
    "m_strInsertDate": "20261130",
    "m_strInsertTime": "091259",
    "m_strRemark": "备注",
}
FILL = {
    "m_strAccountID": ACCOUNT,
    "m_strInstrumentID": "rb2311",
    "m_strExchangeID": "SHFE",
    "m_strOrderSysID": "A0017",
    "m_strTradeID": "T1",
    "m_dPrice": 3700.0,
    "m_nVolume": 2,
    "m_dTradeAmount": 74000.0,
    "m_strTradeDate": "20261130",
    "m_strTradeTime": "9:13:00",
}
POSITION = {"m_strInstrumentID": "601898", "m_strExchangeID": "SH", "m_nVolume": 200, "m_dOpenPrice": 7.11}
ASSET = {"m_dAvailable": 100.0, "m_dFrozenCash": 20.0, "m_dBalance": 130.0, "m_dInstrumentValue": 10.0}


@pytest.fixture(scope="module", params=["3.6", "this"])
def call(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Yield a function that calls one of the strategy, in a process of either Python."""
    python = python36() if request.param == "3.6" else sys.executable
    path = tmp_path_factory.mktemp("strategy") / "strategy.py"
    path.write_bytes(strategy().encode("gbk"))
    command = [python, str(ROOT / "tests" / "support" / "strategy_answers.py"), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(*question: object) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield ask


def order(call: Call, **changes: object) -> tuple[str, dict[str, Any]]:
    identity, data = call("order_event", {"object": {**ORDER, **changes}}, ACCOUNT, "STOCK")
    return identity, data


def position(call: Call, fills: int, **changes: object) -> str:
    identity: str = call("position_event", {"object": {**POSITION, **changes}}, ACCOUNT, "STOCK", "20261130", fills)[0]
    return identity


def asset(call: Call, changed: str, **changes: object) -> str:
    identity: str = call("asset_event", {"object": {**ASSET, **changes}}, ACCOUNT, "STOCK", "20261130", changed)[0]
    return identity


def test_an_order_has_the_names_and_numbers_of_xttrader(call: Call) -> None:
    identity, data = order(call)

    assert identity == "order/20261130/601898.SH/7001/50/0"
    assert data["order_id"] == 7001
    # 09:12:59 in Shanghai.
    assert data["order_time"] == 1796001179
    assert (data["order_type"], data["order_status"], data["account_type"]) == (24, 50, 2)
    assert (data["stock_code"], data["order_remark"]) == ("601898.SH", "备注")
    assert set(data) <= set(FIELDS["order"])


def test_each_state_of_an_order_has_its_own_identity(call: Call) -> None:
    identities = [
        order(call)[0],
        order(call, m_nOrderStatus=55, m_nVolumeTraded=100)[0],
        order(call, m_nOrderStatus=55, m_nVolumeTraded=150)[0],
        order(call, m_nOrderStatus=53, m_nVolumeTraded=150)[0],
        order(call, m_strInsertDate="20261201")[0],
        order(call, m_strOrderSysID="7002")[0],
        order(call, m_strExchangeID="SZ")[0],
    ]

    assert len(set(identities)) == len(identities)


def test_what_the_terminal_changes_by_itself_is_no_event(call: Call) -> None:
    assert order(call, m_nRef=1090571181, m_strErrorMsg="ok")[0] == order(call)[0]
    assert position(call, 1, m_dMarketValue=1500.0, m_dLastPrice=7.5) == position(call, 1)
    assert asset(call, "1.1", m_dBalance=140.0, m_dInstrumentValue=20.0) == asset(call, "1.1")


def test_a_position_that_comes_back_is_another_event(call: Call) -> None:
    bought, sold, again = position(call, 1), position(call, 2, m_nVolume=100), position(call, 3)

    assert len({bought, sold, again}) == 3
    assert len({asset(call, "1.0"), asset(call, "1.0", m_dFrozenCash=0.0), asset(call, "2.0")}) == 3


def test_a_fill_belongs_to_its_order(call: Call) -> None:
    identity, data = call("trade_event", {"object": FILL}, ACCOUNT, "FUTURE")

    assert identity == "trade/20261130/rb2311.SF/A0017/T1"
    assert data["order_id"] == order(call, m_strOrderSysID="A0017")[1]["order_id"] > 0
    assert data["account_type"] == 1
    assert set(data) <= set(FIELDS["trade"])


def test_positions_and_assets_have_the_names_of_xttrader(call: Call) -> None:
    held = call("position_event", {"object": POSITION}, ACCOUNT, "CREDIT", "20261130", 0)[1]
    money = call("asset_event", {"object": ASSET}, ACCOUNT, "CREDIT", "20261130", "0.0")[1]

    assert set(held) <= set(FIELDS["position"])
    assert set(money) <= set(FIELDS["asset"])
    assert (held["volume"], held["account_type"], money["cash"]) == (200, 3, 100.0)


def test_an_identity_has_at_most_128_characters(call: Call) -> None:
    long, longer = (order(call, m_strOrderSysID="7" * count)[0] for count in (200, 201))

    assert len(long) <= 128
    assert long != longer


@pytest.mark.parametrize(
    ("date", "clock", "seconds"),
    [
        ("20240222", "091259", 1708564379),
        ("20240222", "9:12:59", 1708564379),
        ("20240222", 91259, 1708564379),
        ("", "091259", 0),
        ("20240222", "", 1708531200),
        ("20241399", "091259", 0),
    ],
)
def test_a_time_of_day_is_one_of_shanghai(call: Call, date: str, clock: object, seconds: int) -> None:
    assert call("seconds_of", date, clock) == seconds


@pytest.mark.parametrize(
    "value",
    [
        {"time": 1708564379000, "lastPrice": 7.1, "askPrice": [7.2, 7.3]},
        {"stime": "20240222091259", "lastPrice": 7.1, "askPrice": [7.2, 7.3]},
        {"timetag": "20240222 09:12:59", "lastPrice": 7.1, "askPrice": [7.2, 7.3]},
        {"time": [1708564379000], "lastPrice": [7.1], "askPrice": [[7.2, 7.3]]},
        [{"time": 1708564379000.0, "lastPrice": 7.1, "askPrice": [7.2, 7.3]}],
        {"frame": {"rows": [{"lastPrice": 7.1, "askPrice": [7.2, 7.3]}], "index": ["20240222091259"]}},
    ],
)
def test_each_form_of_a_tick_is_the_same_record(call: Call, value: object) -> None:
    (record,) = call("records_of", value)

    assert {name: record[name] for name in ("time", "lastPrice", "askPrice")} == {
        "time": 1708564379000,
        "lastPrice": 7.1,
        "askPrice": [7.2, 7.3],
    }


def test_no_record_is_no_record(call: Call) -> None:
    assert [call("records_of", value) for value in ({}, [], None, "x", {"time": []})] == [[], [], [], [], []]


def test_a_number_that_json_does_not_have_is_null(call: Call) -> None:
    assert json.loads(call("encode", {"a": float("nan"), "b": [float("inf")], "c": "中"})) == {
        "a": None,
        "b": [None],
        "c": "中",
    }


def test_a_moment_of_the_feeder_is_one_of_the_terminal(call: Call) -> None:
    assert call("stamp", 1708564379500) == "20240222091259"


@pytest.mark.parametrize(
    ("now", "last", "silent"),
    [
        ("10:00:31", "10:00:00", True),
        ("10:00:29", "10:00:00", False),
        # Nothing came since the open: it may be a holiday.
        ("10:00:31", "09:29:59", False),
        ("12:00:00", "11:29:59", False),
        ("13:00:40", "11:29:59", False),
        ("13:00:40", "13:00:01", True),
        ("15:30:00", "14:56:59", False),
    ],
)
def test_a_market_is_silent_in_trading_hours_only(call: Call, now: str, last: str, silent: bool) -> None:
    at, before = (call("seconds_of", "20261130", clock) for clock in (now, last))

    assert call("is_silent", at, before) is silent
