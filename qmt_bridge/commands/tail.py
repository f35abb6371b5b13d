"""`qmt-bridge tail`: print the messages of a topic, from ZeroMQ or from a WebSocket, one JSON object a line.

Runs in the main thread.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlencode, urlsplit

import click
import websockets
from websockets.sync.client import ClientConnection, connect

from qmt_bridge.commands.terminal.quote_lines import head, quote_lines
from qmt_bridge.config import Config, connection
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import QMTBridgeError, WireError
from qmt_bridge.language.catalog import say
from qmt_bridge.silence import FIRST_SECONDS
from qmt_bridge.system import clock
from qmt_bridge.wire.frames import checked, encode

# Errors whose cause a user can remove; any other one is a bug and shows its traceback.
ERRORS = (QMTBridgeError, OSError, websockets.WebSocketException, ValueError)

# A gateway reads requests of up to 64 KiB, and a code takes up to some 30 bytes.
CODES_A_REQUEST = 2000
# Bytes. A frame with a whole market has some megabytes.
MAX_FRAME = 64 * 1024 * 1024


def from_wire(
    topics: Sequence[str],
    config: Config,
    count: int | None,
    after: int | None,
    start: str | None = None,
    speed: float = 0,
    drawn: bool = False,
) -> None:
    """Print `count` messages of ZeroMQ topics or prefixes: topic, seq, age in ms, data.

    Standard output is data only, in UTF-8; notices for the user go to standard error. `after` is a position of the
    only trade topic among them: the events after it are printed first. `start` is a time of the day from which on what
    is stored of the topics is printed first, market data at `speed` times its pace (0: as fast as it is read).
    With `drawn` quotes are lines of a table.
    """
    show = _Table() if drawn else _Json()
    frames = subscribe(
        *topics,
        **connection(config),
        after=after,
        start=start,
        speed=speed,
        on_gap=_tell_gap if start is not None else None,
        on_notice=lambda notice: click.echo(say(notice.text), err=True),
    )
    for number, frame in enumerate(frames, 1):
        # A last value from the feeder's memory has no times.
        age = round((clock.time_ns() - frame.received_ns) / 1e6, 3) if frame.received_ns else None
        try:
            line = {"topic": frame.topic, "epoch": frame.epoch, "seq": frame.seq, "age_ms": age}
            show(encode({**line, "data": checked(frame.body)}))
        except WireError as exc:
            # Another program published this message; the feeder's own messages may follow.
            click.echo(say(f"message {frame.seq} of {frame.topic} is left out: {exc}"), err=True)
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
    tls: ssl.SSLContext | None = None,
    start: str | None = None,
    speed: float = 0,
    drawn: bool = False,
) -> None:
    """Print `count` frames of a WebSocket URL as they come; `send`, or a request for `codes`, is sent first.

    Many codes go in several requests, which add up. `after` is a position for /ws/trade: the events after it are
    printed first. `start` is a time of the day from which on what is stored of the codes, or of the trade events, is
    printed first; of codes at `speed` times its pace. With `drawn` quotes are lines of a table.
    """
    show = _Table() if drawn else _Json()
    parts = urlsplit(url)
    option: dict[str, Any] = {} if start is None else {"start": start}
    requests = [send] if send is not None else list(_requests(parts.path, codes, period, option | _speed(speed)))
    if after is not None:
        url = parts._replace(query=f"{parts.query}&after={after}".lstrip("&")).geturl()
    elif start is not None and _is_trade(parts.path):
        url = parts._replace(query=f"{parts.query}&{urlencode({'start': start})}".lstrip("&")).geturl()
    headers = {"X-API-Key": api_key} if api_key else {}
    with connect(url, max_size=MAX_FRAME, additional_headers=headers, compression=None, proxy=None, ssl=tls) as socket:
        for request in requests:
            socket.send(request)
        for number, frame in enumerate(_frames(socket, parts.netloc), 1):
            # Print the bytes that came, independent of the encoding of the output.
            show(frame.encode() if isinstance(frame, str) else frame)
            if number == count:
                return


class _Json:
    """Print lines as they are."""

    def __call__(self, line: bytes) -> None:
        click.echo(line)


class _Table:
    """Print the quotes of a message or a frame as lines of a table, and anything else as it is.

    A plain frame is the quotes by code alone; the others have them in `data`.
    """

    def __init__(self) -> None:
        self._begun = False

    def __call__(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            # MessagePack, which a request may ask for.
            found = None
        lines = quote_lines(found.get("data", found)) if isinstance(found, dict) else None
        if lines is None:
            click.echo(line)
            return
        if not self._begun:
            self._begun = True
            click.echo(head())
        click.echo("\n".join(lines))


def _frames(socket: ClientConnection, server: str) -> Iterator[str | bytes]:
    """Yield frames; write to standard error once if no first frame comes within some seconds."""
    wait: float | None = FIRST_SECONDS
    while True:
        try:
            yield socket.recv(wait)
        except TimeoutError:
            said = say(
                f"{server} has accepted, but nothing has come in {wait:g} s: outside trading hours this is right"
            )
            click.echo(said, err=True)
        except websockets.ConnectionClosedOK:
            return
        wait = None


def _tell_gap(topic: str, missed: int | None) -> None:
    many = "an unknown number of" if missed is None else str(missed)
    click.echo(say(f"{topic}: {many} messages are missing here"), err=True)


def _speed(speed: float) -> dict[str, float]:
    return {"speed": speed} if speed else {}


def _requests(path: str, codes: Sequence[str], period: str, options: dict[str, Any]) -> Iterator[str]:
    for at in range(0, max(1, len(codes)), CODES_A_REQUEST):
        request = _request(path, codes[at : at + CODES_A_REQUEST], period, options)
        if request:
            yield request


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _is_trade(path: str) -> bool:
    return _name(path) == "trade"


def _request(path: str, codes: Sequence[str], period: str, options: dict[str, Any]) -> str | None:
    request: dict[str, Any]
    match _name(path):
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
    return encode(request | options).decode()
