"""`last` and `ticks` of both clients, of a real gateway and its store."""

from __future__ import annotations

import pytest

from qmt_bridge import Disconnected, QMTClient, ServerError, quote_topic, sync
from qmt_bridge.clients import pages
from tests.support.rig import KEY
from tests.support.waiting import wait_for

A, B, BAD = "600000.SH", "600001.SH", "999999.SZ"


def test_newest_records_come_as_a_table_or_as_they_are(rig, monkeypatch):
    # Several pages make one answer.
    monkeypatch.setattr(pages, "_CODES_A_PAGE", 1)
    with sync.QMTClient("127.0.0.1", rig.servers[-1].port) as client:
        with client.subscribe_realtime([A], print):
            wait_for(lambda: quote_topic(A, "tick") in rig.source.wanted)
            rig.source.publish(quote_topic(A, "tick"), {A: [{"time": 1, "lastPrice": 2.5}]})
            wait_for(lambda: client.last([A], library="records")["records"][A])
            table = client.last([A, BAD], fields=["lastPrice"], library="pandas")
        assert table["code"].tolist() == [A, BAD]
        assert table["lastPrice"][0] == 2.5
        assert table["missing"][1] == "unknown_symbol"


async def test_the_asynchronous_client_answers_alike(rig):
    found = await QMTClient("127.0.0.1", rig.servers[-1].port, KEY).last([BAD], gear_num=5, library="records")
    assert found["records"] == {BAD: None}
    assert found["missing"][BAD]["code"] == "unknown_symbol"


def test_refusals_and_lost_gateways_are_told_apart(rig, unused_port):
    port = rig.servers[-1].port
    with pytest.raises(ServerError, match="unsupported_period: unknown period") as caught:
        sync.QMTClient("127.0.0.1", port).last([A], period="7m")
    assert caught.value.frame["retry"] is False
    with pytest.raises(ServerError, match="unauthorized"):
        sync.QMTClient("127.0.0.1", port, "wrong").last([A])
    with pytest.raises(Disconnected, match="cannot read"):
        sync.QMTClient("127.0.0.1", unused_port).last([A])
    with pytest.raises(ServerError, match="upstream_unavailable"):
        sync.QMTClient("127.0.0.1", port).ticks(A)
