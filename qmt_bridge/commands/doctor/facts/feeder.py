"""Facts from the messages of the feeder: its status, and the ages of live ticks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import zmq

from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.commands.doctor.facts.error_text import error_text
from qmt_bridge.config import Config, connection
from qmt_bridge.consumer import subscribe
from qmt_bridge.errors import ConfigError, QMTBridgeError
from qmt_bridge.handshakes import PATIENCE_SECONDS, Links, Notice, Trouble
from qmt_bridge.system import clock
from qmt_bridge.wire.messages import FeedStatus, read_status
from qmt_bridge.wire.topics import STATUS_TOPIC

# A feeder sends a heartbeat every second, and the ticks of one instrument arrive every three seconds.
LISTEN_SECONDS = 4.0
# Longer than PATIENCE_SECONDS, after which an address without an answer is reported.
SILENT_SECONDS = PATIENCE_SECONDS + 0.6
LOOK_SECONDS = 0.05
# Reasons why a connection fails although something answers. No answer at all is not a fault of this machine.
_REFUSALS = frozenset(Trouble) - {Trouble.ABSENT}


class Heard(NamedTuple):
    """What was received at the addresses of the feeder."""

    status: FeedStatus | None = None
    # Ages of live ticks, in ms.
    ages_ms: tuple[float, ...] = ()
    # Why nothing can be received at all, such as missing keys.
    unheard: str | None = None
    # Why there is no connection although something answers; None if nothing answers.
    refused: Notice | None = None


def listen(config: Config) -> Heard:
    """Return the status of the feeder and the ages of live ticks, or why nothing can be received."""
    status: FeedStatus | None = None
    ages_ms: list[float] = []
    notices: list[Notice] = []
    until = clock.monotonic() + LISTEN_SECONDS
    try:
        # Prefixes receive what other programs have asked for; they make no subscription at the feeder.
        for frame in subscribe(
            STATUS_TOPIC,
            "quote/",
            "whole/",
            **connection(config),
            timeout=SILENT_SECONDS,
            on_notice=notices.append,
        ):
            if frame.topic == STATUS_TOPIC:
                status = read_status(frame.body)
            # Simulated and recorded ticks do not show the exchange's time.
            elif status is not None and status.source == "xtquant" and (times := list(_times(frame.data))):
                ages_ms.append(frame.received_ns / 1e6 - max(times))
            if clock.monotonic() > until:
                break
    except (QMTBridgeError, zmq.ZMQError) as exc:
        return Heard(unheard=error_text(exc))
    if status is None:
        return Heard(refused=next((notice for notice in notices if notice.reason in _REFUSALS), None))
    return Heard(status, tuple(ages_ms))


def trade_trouble(config: Config) -> str:
    """Return why this user gets no trade events from the feeder that answers, or no answers about them; or nothing."""
    try:
        trade, ask = endpoint.trade_endpoints(config, "gateway", makes=False)
    except ConfigError as exc:
        return str(exc)
    links = Links()
    try:
        with (
            zmq.Context() as context,
            sockets.connect_subscriber(context, trade.address, trade.curve, links, trade.name),
            sockets.connect_dealer(context, ask.address, ask.curve, links, ask.name),
        ):
            notices: list[Notice] = []
            until = clock.monotonic() + SILENT_SECONDS
            while not notices and not links.all_up() and clock.monotonic() < until:
                time.sleep(LOOK_SECONDS)
                notices = links.look(clock.monotonic())
            links.close()
    except ConfigError as exc:
        links.close()
        return str(exc)
    return next((notice.text for notice in notices if not notice.good), "")


def _times(body: Any) -> Iterator[float]:
    """Yield the exchange's times, in ms since 1970, that the body of a quote or whole topic has."""
    for records in body.values() if isinstance(body, dict) else ():
        for record in records if isinstance(records, list) else [records]:
            moment = record.get("time") if isinstance(record, dict) else None
            if isinstance(moment, int | float):
                yield moment
