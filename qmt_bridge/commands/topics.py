"""`qmt-bridge tail` and `record`: print or record what topics carry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click

from qmt_bridge import __version__
from qmt_bridge.commands.options import (
    asked_to_stop,
    ca_option,
    codes_file_option,
    configure_log,
    fail,
    load_settings,
    quotes_of,
    refuse,
    settings,
    trusted,
    warn_visible,
)
from qmt_bridge.commands.terminal.completion import complete_code
from qmt_bridge.commands.terminal.table import on_terminal
from qmt_bridge.config import (
    CONNECTION,
    LOG,
)
from qmt_bridge.errors import BadCode, QMTBridgeError
from qmt_bridge.language.catalog import say
from qmt_bridge.wire.codes import MARKETS, check_code


@click.command()
@click.argument("topics", nargs=-1, metavar="TOPIC... | URL [CODE...]", shell_complete=complete_code)
@click.option("--count", "-n", type=click.IntRange(min=1), help="Stop after that many messages.")
@codes_file_option
@click.option("--period", default="tick", show_default=True, help="Period of codes: of a file, or for /ws/realtime.")
@click.option("--send", help="First frame to send to the URL, instead of one made from the codes.")
@click.option("--after", type=click.IntRange(min=0), help="Trade events: begin after this position.")
@click.option("--start", help="Begin with the day so far, from this time on, such as 09:30:00.")
@click.option(
    "--speed", type=click.FloatRange(min=0), default=0, help="With --start: times the pace of the day; 0: as read."
)
@ca_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on a terminal too, where quotes are a table.")
@settings("api_key", *CONNECTION)
def tail(
    config_file: Path | None,
    topics: tuple[str, ...],
    count: int | None,
    codes_file: str | None,
    period: str,
    send: str | None,
    after: int | None,
    start: str | None,
    speed: float,
    ca: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Print what topics carry, one JSON object a line; on a terminal quotes are a table.

    From ZeroMQ: qmt-bridge tail quote/600519.SH/tick/ whole/SH/

    From a WebSocket: qmt-bridge tail ws://127.0.0.1:8000/ws/realtime 600519.SH 000001.SZ

    The day so far, then live: qmt-bridge tail quote/600519.SH/tick/ --start 09:30:00

    The day at ten times its pace: qmt-bridge tail quote/600519.SH/tick/ --start 09:30:00 --speed 10

    Many codes: qmt-bridge tail --codes-file codes.txt --period 1m
    """
    from qmt_bridge.commands import tail as tailing
    from qmt_bridge.commands.codes_file import read_codes
    from qmt_bridge.wire.topics import whole_topic

    if not topics and codes_file is None:
        raise click.UsageError("Missing argument 'TOPIC... | URL [CODE...]' (or --codes-file).")
    if speed and start is None:
        raise click.UsageError("--speed is that of the day so far, which needs --start.")
    if after is not None and start is not None:
        raise click.UsageError("--after and --start both say where to begin; choose one.")
    is_url = bool(topics) and topics[0].startswith(("ws://", "wss://"))
    if is_url:
        _refuse_for_url(topics, send)
        warn_visible("api_key")
    else:
        _refuse_for_topics(codes_file)
        _check_topics(topics)
    tls = trusted(topics[0] if is_url else None, ca)
    config = load_settings(config_file, flags, only=True)
    drawn = on_terminal() and not as_json
    try:
        if is_url:
            codes = [*topics[1:], *(read_codes(codes_file, whole_topic) if codes_file else ())]
            tailing.from_url(topics[0], codes, period, send, config.api_key, count, after, tls, start, speed, drawn)
        else:
            tailing.from_wire([*topics, *quotes_of(codes_file, period)], config, count, after, start, speed, drawn)
    except BrokenPipeError:
        # With `... | head` the pipe ends; click then ends the command without a message.
        raise
    except (ConnectionError, TimeoutError) as exc:
        reason = exc.strerror or str(exc)
        fail(QMTBridgeError(f"no gateway answers at {topics[0]}: {reason}; `qmt-bridge up` or `gateway` starts one"))
    except tailing.ERRORS as exc:
        fail(exc)


def _refuse_for_url(topics: tuple[str, ...], send: str | None) -> None:
    """Refuse flags and codes that have no effect with a URL."""
    path = urlsplit(topics[0]).path.rstrip("/")
    refuse("a gateway is asked, not the feeder", *CONNECTION)
    if send is not None:
        refuse("--send is the whole request", "period", "codes_file", "start", "speed")
        _refuse_codes(topics, "--send is the whole request")
    if not path.endswith("/realtime"):
        refuse("only /ws/realtime has periods", "period")
    if not path.endswith("/trade"):
        refuse("only /ws/trade has positions", "after")
    elif send is None:
        refuse("/ws/trade has the events of all accounts, and takes no codes", "codes_file")
        _refuse_codes(topics, "/ws/trade has the events of all accounts")


def _refuse_codes(topics: tuple[str, ...], why: str) -> None:
    if len(topics) > 1:
        raise click.UsageError(f"The codes have no effect: {why}.")


def _refuse_for_topics(codes_file: str | None) -> None:
    """Refuse flags that have no effect with topics of ZeroMQ."""
    refuse("it is for a URL; the feeder asks for CURVE keys (curve_dir)", "api_key")
    refuse("it is for a URL", "send")
    _refuse_period(codes_file)


def _check_topics(topics: Iterable[str]) -> None:
    """Raise `UsageError` for a URL or a code in the place of a topic, with the topic that may have been meant."""
    for topic in topics:
        if "://" in topic:
            raise click.UsageError(f"{topic} is no topic; the URL of a WebSocket begins with ws:// or wss://.")
        if topic in MARKETS:
            raise click.UsageError(f"{topic} is a market, and no topic; did you mean whole/{topic}/?")
        if "/" not in topic and any(map(str.isdigit, topic)):
            try:
                check_code(topic)
            except BadCode as exc:
                raise click.UsageError(exc.reason) from exc
            raise click.UsageError(f"{topic} is a code, and no topic; did you mean quote/{topic}/tick/?")


def _refuse_period(codes_file: str | None) -> None:
    if codes_file is None:
        refuse("it is for --codes-file; a topic has its own, quote/600519.SH/1m/", "period")


@click.command()
@click.argument("more", nargs=-1, metavar="TOPIC...", shell_complete=complete_code)
@click.option("--topics", multiple=True, metavar="TOPIC...", help="Topics, and prefixes such as quote/ or trade/.")
@codes_file_option
@click.option("--period", default="tick", show_default=True, help="Period of the codes in the file.")
@click.option("--out", required=True, help="The tape; .zst compresses it, {date} in it begins a new one every day.")
@click.option("--rotate", type=click.Choice(("day", "hour")), help="Begin a new tape every Shanghai day or hour.")
@settings(*CONNECTION, *LOG)
@click.option("--until-eof", is_flag=True, hidden=True)
def record(
    config_file: Path | None,
    more: tuple[str, ...],
    topics: tuple[str, ...],
    codes_file: str | None,
    period: str,
    out: str,
    rotate: Literal["day", "hour"] | None,
    until_eof: bool,
    **flags: Any,
) -> None:
    """Record what topics carry on a tape, until Ctrl-C; one that exists is continued.

    qmt-bridge record --topics whole/SH/ quote/ trade/ --out day-{date}.tape.zst

    qmt-bridge record --codes-file codes.txt --period 1m --out bars.tape.zst

    A whole topic is asked for; a prefix records what others ask for. Of trade events every one comes.
    """
    stop = asked_to_stop(until_eof)
    from qmt_bridge.tapes.record import Recorder

    config = load_settings(config_file, flags, only=True)
    configure_log(config)
    if not topics + more and codes_file is None:
        raise click.UsageError("missing topics to record (or --codes-file)")
    _check_topics(topics + more)
    _refuse_period(codes_file)
    try:
        wanted = topics + more + quotes_of(codes_file, period)
        recorder = Recorder(wanted, out, rotate, config, __version__)
        try:
            recorder.run(stop)
        finally:
            click.echo("\n".join(map(say, recorder.summary().splitlines())))
    except (QMTBridgeError, OSError) as exc:
        fail(exc)
