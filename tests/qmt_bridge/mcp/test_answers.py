"""What every answer says about its data, times beside numbers, masked accounts, and the bound of bytes."""

from __future__ import annotations

import orjson
import pytest

from qmt_bridge.errors import BadRequest
from qmt_bridge.mcp.answers import MOST_BYTES, about, as_text, book, dated, fitting, masked

LIVE = {"source": "xtquant", "simulated": False, "feed": "up", "reason": None}


def test_live_data_has_no_notice() -> None:
    assert about(LIVE) == {"source": "xtquant", "simulated": False, "feed": "up"}


@pytest.mark.parametrize(
    ("state", "notices"),
    [
        pytest.param(LIVE | {"source": "sim", "simulated": True}, ["SIMULATED DATA"], id="simulated"),
        pytest.param(LIVE | {"source": "replay"}, ["REPLAY"], id="replay"),
        pytest.param(LIVE | {"feed": "stale", "reason": "no tick"}, ["The feed is stale (no tick)"], id="stale"),
        pytest.param(
            LIVE | {"source": "sim", "simulated": True, "feed": "down"},
            ["SIMULATED DATA", "The feed is down: "],
            id="both",
        ),
        pytest.param(None, ["is not known"], id="not-shown"),
    ],
)
def test_notice_says_what_the_reader_has_to_know(state: dict[str, object] | None, notices: list[str]) -> None:
    notice = about(state)["notice"]
    assert [text for text in notices if text not in notice] == []


def test_each_time_has_that_of_shanghai_beside_it() -> None:
    record = {"time": 1795904064954, "of": [{"traded_time": 1795904064, "price": 7.1}], "hole": {"from_ms": 1000}}
    assert dated(record) == {
        "time": 1795904064954,
        "time_shanghai": "2026-11-29T06:14:24.954+08:00",
        "of": [
            {"traded_time": 1795904064, "traded_time_shanghai": "2026-11-29T06:14:24.000+08:00", "price": 7.1},
        ],
        "hole": {"from_ms": 1000, "from_shanghai": "1970-01-01T08:00:01.000+08:00"},
    }


@pytest.mark.parametrize("value", [0, None, True, "09:30", -1, 1e300])
def test_what_is_no_time_stays_alone(value: object) -> None:
    assert dated({"time": value}) == {"time": value}


def test_account_numbers_keep_their_last_digits() -> None:
    event = {"type": "order", "seq": 1, "data": {"account_id": "1000000365", "secu_account": "A12", "price": 7.1}}
    assert masked(event)["data"] == {"account_id": "******0365", "secu_account": "******", "price": 7.1}
    assert masked({"type": "connected", "seq": 2, "data": None}) == {"type": "connected", "seq": 2, "data": None}


def test_book_is_that_of_a_tick_or_of_a_depth() -> None:
    tick = {"time": 5, "lastPrice": 2, "askPrice": [3, 0], "askVol": [7, 0], "bidPrice": [2, 1], "bidVol": [8, 9]}
    depth = {"time": 5, "price": 2, "askPrice": [3], "askVolume": [7], "bidPrice": [2, 1], "bidVolume": [8, 9]}
    shown = {
        "time": 5,
        "last_price": 2,
        "asks": [{"level": 1, "price": 3, "volume": 7}],
        "bids": [{"level": 1, "price": 2, "volume": 8}, {"level": 2, "price": 1, "volume": 9}],
    }
    assert book(tick, 5) == book(depth, 5) == shown
    assert [row["level"] for row in book(tick, 1)["bids"]] == [1]


@pytest.mark.parametrize("newest", [True, False])
def test_as_many_entries_are_kept_as_fit(newest: bool) -> None:
    entries = [{"seq": seq, "text": "文" * 100} for seq in range(1000)]
    kept = fitting(entries, newest=newest)
    assert kept == (entries[-len(kept) :] if newest else entries[: len(kept)])
    assert MOST_BYTES * 0.9 < len(orjson.dumps(kept)) < MOST_BYTES
    assert fitting(entries[:3], newest=newest) == entries[:3]


def test_answer_of_too_many_bytes_is_refused_with_a_hint() -> None:
    assert as_text({"a": "文"}, "ask for less") == '{"a":"文"}'
    with pytest.raises(BadRequest, match="bytes of 65536; ask for less"):
        as_text({"a": "x" * MOST_BYTES}, "ask for less")
