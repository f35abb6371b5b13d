"""A running `qmt-bridge up` on free ports, and clients of it."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.support import waiting
from tests.support.contract import documented
from tests.support.ports import UP, address_options, free_ports, tcp
from tests.support.processes import DEADLINE, Printing

START = (sys.executable, "-m", "qmt_bridge.cli")


class Up(Printing):
    """A running `qmt-bridge up` on free ports."""

    def __init__(
        self, folder: Path, *arguments: str, start: Sequence[str] = START, ports: Sequence[int] | None = None
    ) -> None:
        # Of the gateway, of market data, of questions, at last of the store; on Windows two more are before it.
        self.ports = ports or free_ports(1 + len(UP))
        self.port = self.ports[0]
        self.market_addr = tcp(self.ports[1])
        command = [*start, "up", *arguments]
        command += [f"--port={self.port}", f"--data-dir={folder}"]
        command += address_options(dict(zip(UP, map(tcp, self.ports[1:]), strict=True)))
        super().__init__(command)

    def wait_ready(self) -> None:
        wait_for(lambda: "  stop " in self.text or self.process.poll() is not None, "the banner", self)
        assert self.process.poll() is None, self.text

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{path}"

    @property
    def trade_url(self) -> str:
        found = re.search(r"ws://\S+/ws/trade\?api_key=\S+", self.text)
        assert found is not None, self.text
        return found[0]

    def pid(self, part: str) -> int:
        """Return the process id of the part, which the banner shows."""
        found = re.search(rf"  {part} +pid (\d+)", self.text)
        assert found is not None, self.text
        return int(found[1])


def wait_for(condition: Callable[[], object], what: str, up: Up, seconds: float = DEADLINE) -> None:
    waiting.wait_for(condition, lambda: f"{what}; printed:\n{up.text}", seconds)


@contextmanager
def running(folder: Path, *arguments: str, start: Sequence[str] = START) -> Iterator[Up]:
    up = Up(folder, *arguments, start=start)
    try:
        up.wait_ready()
        yield up
    finally:
        up.close()


async def receive(client: ClientConnection) -> Any:
    async with asyncio.timeout(DEADLINE):
        frame = json.loads(await client.recv())
    assert client.request is not None
    return documented(client.request.path, frame)


async def answers(client: ClientConnection) -> bool:
    """Return whether the other end answers a ping; frames could have been sent before it ended."""
    async with asyncio.timeout(DEADLINE):
        try:
            await (await client.ping())
        except ConnectionClosed:
            return False
    return True
