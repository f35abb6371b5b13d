"""A trader's program that may be killed at any moment: it saves each event and resumes after the last saved one.

python -m tests.chaos.program PORT KEY FILE
"""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path

from qmt_bridge import QMTClient
from tests.chaos.verdict import Received, received


def read(path: Path) -> list[Received]:
    """Return the saved events; remove a last line that was cut short by a kill."""
    if not path.exists():
        return []
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        with path.open("r+b") as file:
            file.truncate(len(whole) + 1 if whole else 0)
    return [Received(*map(int, line.split())) for line in whole.splitlines()]


async def _run(port: int, key: str, path: Path) -> None:
    before = read(path)
    after = before[-1].seq if before else 0
    with path.open("ab", buffering=0) as file:
        async for event in QMTClient("127.0.0.1", port, key, connect_timeout=math.inf).trade_events(after):
            file.write(b"%d %d\n" % received(event))


if __name__ == "__main__":
    asyncio.run(_run(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
