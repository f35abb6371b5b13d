"""The guide of the user: its Python programs are run verbatim with servers that answer as it says."""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from websockets.sync.server import ServerConnection, serve

from qmt_bridge import CallbackError, client
from tests.support.up import running

GUIDE = Path(__file__).with_name("websocket-guide.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)

# The requests and the pushed frames of the guide.
REQUESTS = {
    "/ws/realtime": {"stocks": ["000001.SZ", "600519.SH"], "period": "tick"},
    "/ws/whole_quote": {"codes": ["SH", "SZ"]},
    "/ws/l2_thousand": {"stocks": ["000001.SZ"]},
}
FRAMES = {
    "/ws/realtime": {"000001.SZ": [{"time": 1, "lastPrice": 10.5}]},
    "/ws/whole_quote": {"600519.SH": {"time": 1, "lastPrice": 1500.0}},
    "/ws/l2_thousand": {"000001.SZ": [{"time": 1, "askPrice": [10.5]}]},
    "/ws/trade": {"type": "order", "seq": 1, "data": {"order_id": 7}},
}
KEY = "your-secret-key"


def answer(connection: ServerConnection) -> None:
    path = connection.request.path
    if path in REQUESTS and json.loads(connection.recv()) != REQUESTS[path]:
        connection.close(1008, "bad_request: not the request of the guide")
    elif path == "/ws/trade" and connection.request.headers.get("Authorization") != f"Bearer {KEY}":
        connection.close(1008, "unauthorized")
    else:
        connection.send(json.dumps(FRAMES[path]))
        # Wait until the client disconnects.
        for _ in connection:
            pass


@contextmanager
def scripted() -> Iterator[tuple[str, int]]:
    """Run a server that sends exactly what the guide says."""
    server = serve(answer, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.socket.getsockname()
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture(params=["scripted", "simulator"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Yield host and port of a gateway with the guide's key that pushes frames on every URL."""
    if request.param == "scripted":
        with scripted() as address:
            yield address
    else:
        with running(tmp_path, "--source=sim", f"--api-key={KEY}", "--sim-order-interval=0.2") as up:
            yield "127.0.0.1", up.port


class Stop(Exception):
    """Ends an endless program at its first line of output."""


def test_programs_of_the_guide_run_verbatim(gateway, monkeypatch):
    host, port = gateway
    # The programs name a host; only the TCP connection is made to the server of the fixture instead.
    monkeypatch.setattr(client, "connect", functools.partial(client.connect, host=host, port=port))
    printed: list[str] = []

    def stop(text: str) -> None:
        printed.append(text)
        raise Stop

    # Later programs use names of earlier ones.
    names: dict[str, object] = {"print": stop}
    frames = []
    for program in PROGRAMS:
        with pytest.raises(CallbackError) as caught:
            exec(compile(program, "websocket-guide.md", "exec"), names)
        assert isinstance(caught.value.__cause__, Stop)
        frames.append(caught.value.frame)

    realtime, whole_quote, l2_thousand, trade = frames
    assert realtime.keys() <= {"000001.SZ", "600519.SH"}
    assert all(isinstance(records, list) for records in realtime.values())
    assert all(isinstance(tick, dict) for tick in whole_quote.values())
    assert list(l2_thousand) == ["000001.SZ"]
    assert isinstance(l2_thousand["000001.SZ"], list)
    assert trade.keys() == {"type", "seq", "data"}
    assert printed == [f"收到行情: {frame}" for frame in frames[:3]] + [f"交易事件: {trade}"]
