"""The time of the newest record of a message."""

from __future__ import annotations

import pytest

from qmt_bridge.errors import WireError
from qmt_bridge.store.record_time import record_ms
from qmt_bridge.wire.topics import Kind

MS = 1795743000500
RECEIVED_NS = (MS + 300) * 1_000_000


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(Kind.QUOTE, b'{"600519.SH":[{"time":%d,"lastPrice":1.5}]}' % MS, id="tick"),
        pytest.param(Kind.QUOTE, b'{"600519.SH":[{"time":%d},{"time":%d}]}' % (MS - 9, MS), id="several"),
        pytest.param(Kind.QUOTE, b'{"600519.SH":[{"time":%d.0}]}' % MS, id="float"),
        pytest.param(Kind.WHOLE, b'{"600519.SH":{"time":%d},"600000.SH":{"time":%d}}' % (MS, MS - 3000), id="newest"),
        pytest.param(Kind.L2, b'{"600519.SH":[{"time":%d,"askPrice":[1]}]}' % MS, id="depth"),
        pytest.param(Kind.L2, b'{"600519.SH":[{"timeTag":%d}]}' % MS, id="documented-depth"),
        pytest.param(
            Kind.FORMULA, b'{"data":{"dbt":1,"timelist":[%d,%d],"outputs":{}}}' % (MS - 60000, MS), id="values"
        ),
    ],
)
def test_time_is_that_of_the_newest_record(kind: Kind, body: bytes) -> None:
    assert record_ms(kind, body, RECEIVED_NS) == MS


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.QUOTE, b'{"600519.SH":[]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":null}]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":"soon"}]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":true}]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":0}]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":34200000}]}'),
        (Kind.QUOTE, b'{"600519.SH":[{"time":4102444800000}]}'),
        (Kind.QUOTE, b'["a document"]'),
        (Kind.WHOLE, b"{}"),
        (Kind.FORMULA, b'{"data":{}}'),
        (Kind.FORMULA, b'{"data":{"timelist":7}}'),
        (Kind.FORMULA, b"{}"),
    ],
)
def test_without_a_plausible_time_it_is_when_it_came(kind: Kind, body: bytes) -> None:
    assert record_ms(kind, body, RECEIVED_NS) == MS + 300


@pytest.mark.parametrize("kind", [Kind.QUOTE, Kind.WHOLE, Kind.L2, Kind.FORMULA])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_a_wire_error(kind: Kind, body: bytes) -> None:
    with pytest.raises(WireError):
        record_ms(kind, body, RECEIVED_NS)
