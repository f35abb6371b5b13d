"""What a source gives is what every reader gets, but for NaN, infinity and bytes, which JSON does not have."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from feeder.xt import normalize
from gateway.sending.merged import Merged
from gateway.sending.newest import Newest
from gateway.sending.view import View
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import TopicState, decode_reply, encode_reply
from qmt_bridge.wire.topics import whole_topic
from tests.support.samples import BINARY, BODIES, NAMES, RECORDS, VALUES, as_json, rounded

MARKET = whole_topic("SH")
MARKETS = st.dictionaries(NAMES, RECORDS, max_size=8)

some = settings(max_examples=50, database=None)


def frame(body: object, seq: int = 1) -> Frame:
    return Frame(MARKET, 1, seq, 0, 0, frames.encode(body))


@some
@given(VALUES | BINARY)
def test_a_plain_consumer_reads_what_was_published(value: object) -> None:
    body = frames.encode({"600519.SH": value})
    for read in (frames.decode, json.loads):
        assert read(body) == {"600519.SH": as_json(value)}
    assert frames.encode(frames.decode(body)) == body


@some
@given(VALUES)
def test_what_xtquant_gives_is_published_as_it_is(value: object) -> None:
    assert frames.encode(normalize.plain(value)) == frames.encode(value)


@some
@given(BODIES)
def test_a_browser_gets_the_bytes_of_the_feeder(body: object) -> None:
    published = frame(body)
    assert published.framed.endswith(published.body)
    assert View().render(published) is published.body
    assert json.loads(View(stamped=True).render(published))["data"] == as_json(body)


@some
@given(BODIES)
def test_messagepack_has_the_values_of_the_json(body: object) -> None:
    for view in (View(True), View(True, stamped=True)):
        found = msgspec.msgpack.decode(view.render(frame(body)))
        assert (found["data"] if view.stamped else found) == rounded(as_json(body))


@some
@given(BODIES, st.booleans())
def test_an_answer_holds_the_body_byte_for_byte(body: object, more: bool) -> None:
    state = TopicState(7, MARKET, "live", None, None, 2**62, 9, frames.encode(body), more, 3)
    assert decode_reply(encode_reply(state)) == state
    assert json.loads(encode_reply(state))["body"] == as_json(body)


@some
@given(MARKETS, st.integers(20, 2000))
def test_a_market_is_split_and_joined_without_a_change(market: dict[str, Any], limit: int) -> None:
    pieces = frames.split(frames.encode(market))
    batches = list(frames.join(pieces, limit))
    assert all(len(batch) <= limit or len(frames.split(batch)) == 1 for batch in batches)
    assert {code: tick for batch in batches for code, tick in frames.decode(batch).items()} == as_json(market)
    one_by_one = {code: msgspec.Raw(frames.encode(tick)) for code, tick in market.items()}
    assert list(frames.join(one_by_one, limit)) == batches


@some
@given(st.dictionaries(NAMES, st.lists(RECORDS, max_size=5), max_size=8), st.integers(20, 2000))
def test_lists_of_records_are_split_and_joined_without_a_change(body: dict[str, Any], limit: int) -> None:
    pieces = [(code, one) for code, some in frames.split_lists(frames.encode(body)).items() for one in some]
    found: dict[str, list[object]] = {}
    for batch in frames.join_lists(pieces, limit):
        assert len(batch) <= limit or sum(map(len, frames.split_lists(batch).values())) == 1
        for code, records in frames.decode(batch).items():
            found.setdefault(code, []).extend(records)
    assert found == {code: records for code, records in as_json(body).items() if records}


@some
@given(st.lists(MARKETS, min_size=1, max_size=5))
def test_a_slow_client_gets_the_newest_of_each_code(markets: list[dict[str, Any]]) -> None:
    waiting = Merged("code")
    for seq, market in enumerate(markets, 1):
        waiting.add(frame(market, seq))
    found: dict[str, object] = {}
    while waiting:
        for taken in waiting.take(500):
            found |= taken.data
    expected: dict[str, object] = {}
    for market in markets:
        expected |= as_json(market)
    assert found == expected


@some
@given(st.dictionaries(NAMES, st.lists(RECORDS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_of_a_list_the_newest_record_is_kept(body: dict[str, Any]) -> None:
    table = Newest()
    bits, older = table.take(frame(body))
    kept = {code: msgspec.json.decode(record) for _, code, record in table.records(bits, 0, 10**9)}
    assert kept == {code: records[-1:] for code, records in as_json(body).items()}
    assert older == sum(len(records) - 1 for records in body.values())
