"""`qmt-bridge tail`: print what a topic carries, from ZeroMQ or from a WebSocket, one JSON object a line.

Runs in the main thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import click
import websockets
from websockets.sync.client import connect

from qmt_bridge.config import Config
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import QMTBridgeError
from qmt_bridge.wire.frames import to_json

# What a user can do something about; anything else is a bug and shows its traceback.
ERRORS = (QMTBridgeError, OSError, websockets.WebSocketException, ValueError)

# A whole market is some megabytes.
MAX_FRAME = 64 * 1024 * 1024


def from_wire(topics: Sequence[str], config: Config, count: int | None, after: int | None) -> None:
    """Print `count` messages of ZeroMQ topics or prefixes: topic, seq, age in ms, data.

    `after` is a position of the only trade topic among them: what came later is printed first.
    """
    frames = subscribe(
        *topics,
        market_addr=config.market_addr,
        trade_addr=config.trade_addr,
        ask_addr=config.ask_addr,
        curve_dir=config.curve_dir,
        after=after,
    )
    for number, frame in enumerate(frames, 1):
        # A last value from the feeder's memory carries no time.
        age = round((time.time_ns() - frame.received_ns) / 1e6, 3) if frame.received_ns else None
        line = {"topic": frame.topic, "epoch": frame.epoch, "seq": frame.seq, "age_ms": age, "data": frame.data}
        click.echo(to_json(line))
        if number == count:
            return


def from_url(
    url: str,
    codes: Sequence[str],
    period: str,
    send: str | None,
    api_key: str,
    count: int | None,
    after: int | None,
) -> None:
    """Print `count` frames of a WebSocket URL as they come; `send`, or a request for `codes`, is sent first.

    `after` is a position for /ws/trade: what came later is printed first.
    """
    parts = urlsplit(url)
    request = send if send is not None else _request(parts.path, codes, period)
    if after is not None:
        url = parts._replace(query=f"{parts.query}&after={after}".lstrip("&")).geturl()
    headers = {"X-API-Key": api_key} if api_key else {}
    with connect(url, max_size=MAX_FRAME, additional_headers=headers, compression=None, proxy=None) as socket:
        if request:
            socket.send(request)
        for number, frame in enumerate(socket, 1):
            click.echo(frame)
            if number == count:
                return


def _request(path: str, codes: Sequence[str], period: str) -> str | None:
    request: dict[str, Any]
    match path.rstrip("/").rpartition("/")[2]:
        case "realtime":
            request = {"stocks": list(codes), "period": period}
        case "whole_quote":
            request = {"codes": list(codes)}
        case "l2_thousand":
            request = {"stocks": list(codes)}
        case "trade":
            return None
        case name:
            raise ValueError(f"no request can be made for /{name} from codes; give it with --send")
    return to_json(request).decode()
