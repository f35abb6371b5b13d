"""Trade events by their type: no field that the feeder publishes is left out, and odd ones stay events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from feeder.xt.trading.records import FIELDS
from qmt_bridge.clients.trades import EVENTS, FillEvent, typed_event
from qmt_bridge.wire.messages import TradeEvent

# Fields beside which the feeder puts the name of the value.
NAMED = {"account_type", "order_type", "price_type", "direction", "offset_flag", "order_status", "market"}


@pytest.mark.parametrize("event", EVENTS)
def test_views_have_all_fields_that_are_published(event: str) -> None:
    fields = FIELDS[event]
    data = {name: f"of {name}" for name in [*fields, *(f"{name}_name" for name in fields if name in NAMED)]}
    read: Any = typed_event({"type": event, "seq": 7, "data": data})
    assert {name: getattr(read.data, name) for name in data} == data
    assert (read.type, read.seq, read.journaled) == (event, 7, True)


def test_an_event_of_another_form_or_type_is_still_an_event() -> None:
    assert isinstance(typed_event({"type": "trade", "seq": 1, "data": {"traded_volume": "100"}}), FillEvent)
    for odd in ({"type": "trade", "seq": 1, "data": None}, {"type": "account_status", "seq": 2, "data": {"status": 0}}):
        read = typed_event(odd)
        assert isinstance(read, TradeEvent)
        assert msgspec.to_builtins(read)["data"] == odd["data"]
    assert typed_event({"type": "order", "data": {"order_id": 5}}).seq == 0  # type: ignore[attr-defined]
