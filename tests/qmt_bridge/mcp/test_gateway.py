"""What is told of a gateway that refuses the state of the service, or is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qmt_bridge.mcp import gateway as gateway_module
from qmt_bridge.mcp.gateway import Failure, Gateway
from qmt_bridge.mcp.tools import TOOLS, Bars


class Answering:
    """A server that gives one answer to all requests, and keeps their keys."""

    def __init__(self) -> None:
        self.status, self.body = 200, b"{}"
        self.keys: list[str | None] = []
        # Seconds that an answer takes.
        self.delay = 0.0


@pytest.fixture
def answering() -> Iterator[tuple[Answering, Gateway]]:
    answer = Answering()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer.keys.append(self.headers["Authorization"])
            time.sleep(answer.delay)
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            port = server.server_address[1]
            yield answer, Gateway(f"http://127.0.0.1:{port}", "127.0.0.1", port, "k", False)
        finally:
            server.shutdown()
            thread.join()


async def test_key_that_may_not_see_the_state_is_no_failure(answering: tuple[Answering, Gateway]) -> None:
    answer, gateway = answering
    answer.status, answer.body = 403, b'{"code":"forbidden","error":"the key x has no scope market","retry":false}'
    assert await gateway.state() is None
    with pytest.raises(Failure, match="no scope market; `qmt-bridge key add`"):
        await gateway.page("/api/capabilities")
    assert answer.keys == ["Bearer k"] * 2


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
async def test_other_program_at_the_address_is_no_gateway(answering: tuple[Answering, Gateway], body: bytes) -> None:
    answer, gateway = answering
    answer.body = body
    with pytest.raises(Failure, match=r"no gateway answers at http.*is no gateway: /api/state"):
        await gateway.state()


async def test_busy_gateway_is_told_with_a_hint(answering: tuple[Answering, Gateway]) -> None:
    answer, gateway = answering
    answer.status, answer.body = 429, b"too many requests"
    with pytest.raises(Failure, match="rate_limited: too many requests; ask again in some seconds"):
        await gateway.last(["600519.SH"])


async def test_all_questions_of_a_call_have_one_limit_of_time(
    answering: tuple[Answering, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, gateway = answering
    answer.body = b'{"type":"end","records":0,"missing":[]}'
    asked = Bars("600519.SH", "1d")
    assert "600519.SH" in await TOOLS["bars"].run(gateway, asked)
    questions = len(answer.keys)
    # Each answer is in time, and both together are not.
    answer.delay = 0.3
    monkeypatch.setattr(gateway_module, "SECONDS", 0.3 * questions - 0.1)
    with pytest.raises(Failure, match="has not answered within"):
        async with gateway.call():
            await TOOLS["bars"].run(gateway, asked)
    assert questions == 2
