"""`last` and `ticks` of both clients, of a real gateway and its store."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from qmt_bridge import CallbackError, Disconnected, QMTClient, ServerError, StreamState, quote_topic, sync
from qmt_bridge.clients import pages
from tests.support.rig import KEY
from tests.support.waiting import wait_for

A, B, BAD = "600000.SH", "600001.SH", "999999.SZ"
needs_pandas = pytest.mark.skipif(find_spec("pandas") is None, reason="the packages of tests/windows have no pandas")


@pytest.fixture
def rig(shared_rig):
    # A code that was asked for stays subscribed for 15 s, which no test here has to wait for.
    return shared_rig


@needs_pandas
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


@pytest.fixture
def stored():
    """Return the port of a server that answers with the lines of the test, and the URLs that it was asked for."""
    lines: list[str] = []
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write("\n".join(lines).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1], lines, asked
    server.shutdown()
    thread.join()
    server.server_close()


HOLE = {"reason": "gap", "after": {"epoch": 1, "seq": 2}}
END = {"type": "end", "records": 1, "complete": False, "missing": [HOLE]}


@needs_pandas
def test_stored_records_tell_what_is_missing(stored, caplog):
    port, lines, asked = stored
    lines += [json.dumps({"time": 1, "lastPrice": 2.5}), json.dumps(END)]
    told: list[StreamState] = []
    client = sync.QMTClient("127.0.0.1", port, on_state=told.append)
    table = client.ticks(A, "09:30", "10:00", fields=["time", "lastPrice"], library="pandas")
    assert table[["code", "time", "lastPrice"]].values.tolist() == [[A, 1, 2.5]]
    assert asked == ["/api/ticks/600000.SH?period=tick&start=09%3A30&end=10%3A00&fields=time%2ClastPrice"]
    assert told == [StreamState("gap", "/api/ticks/600000.SH", "gap", codes=(A,), gap=HOLE)]
    assert "/api/ticks/600000.SH lacks records: gap" in caplog.text
    records, end = client.ticks(A, library="records")
    assert (records, end) == ([{"time": 1, "lastPrice": 2.5}], END)


def test_a_notice_of_stored_records_that_fails_is_told(stored):
    port, lines, _ = stored
    lines.append(json.dumps(END))
    with pytest.raises(CallbackError):
        sync.QMTClient("127.0.0.1", port, on_state=lambda state: 1 / 0).ticks(A, library="records")


async def test_an_answer_that_was_cut_off_is_an_error(stored):
    port, lines, _ = stored
    lines.append(json.dumps({"time": 1}))
    with pytest.raises(Disconnected, match="cut off after 1 records"):
        await QMTClient("127.0.0.1", port).ticks(A)


@pytest.mark.parametrize("answer", ["<html>", "[1]", "{}", '{"records": 5}'])
@pytest.mark.parametrize("page", ["last", "ticks"])
def test_another_server_is_no_gateway(stored, page, answer):
    port, lines, _ = stored
    lines.append(answer)
    client = sync.QMTClient("127.0.0.1", port)
    with pytest.raises(Disconnected, match=r"is no gateway: /api|was cut off"):
        client.last([A]) if page == "last" else client.ticks(A)
