"""Which codes each client asks for, and its request."""

from __future__ import annotations

import orjson
import pytest

from qmt_bridge.commands.load.load import Load


def test_the_codes_of_a_client_follow_those_of_the_previous_one():
    load = Load("ws://h/ws/realtime", ("a", "b", "c"), each=2)
    assert [load.codes_of(number) for number in range(3)] == [("a", "b"), ("c", "a"), ("b", "c")]
    assert load._replace(each=0).codes_of(5) == ("a", "b", "c")


def test_a_request_fits_the_endpoint_of_the_url():
    load = Load("ws://h/ws/whole_quote", ("SH",))
    assert orjson.loads(load.request(0)) == {"id": 1, "seq": True, "codes": ["SH"]}
    load = Load("ws://h/ws/realtime", ("600519.SH",), period="1m")
    assert orjson.loads(load.request(0)) == {"id": 1, "seq": True, "stocks": ["600519.SH"], "period": "1m"}
    with pytest.raises(ValueError, match="/ws/trade"):
        Load("ws://h/ws/trade").request(0)
