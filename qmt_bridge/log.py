"""Logging, configured once by a command: text or JSON lines on stderr, without keys and account numbers.

Modules only do ``logger = logging.getLogger(__name__)``; nothing but a command calls `configure`. The ASGI app calls
`protect` alone, because another server that runs the app configures its own logging. That works on the records
themselves, so it holds for the loggers of every library, with any handler and at every level.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import orjson

# The name may be percent-encoded, which the key check decodes like every other server.
_NAME = r"(?:a|%61)(?:p|%70)(?:i|%69)(?:_|%5f)(?:k|%6b)(?:e|%65)(?:y|%79)="
# A misspelled parameter, such as ?apikey= or ?token=: the key check ignores it, but its value may be the key.
_MEANT = r"""(?<=[?&'"])[\w%-]*(?:key|token|secret)="""
# A value may contain quotes; one that ends a quoted text does not belong to it.
_VALUE = r"""(?:(?!["'](?:[\s,)\]}&]|$))[^&\s])*"""
_SECRET_HEADERS = r"\b(?:authorization|x-api-key|cookie)"
_PATTERNS = (
    (re.compile(rf"({_NAME}|{_MEANT}){_VALUE}", re.IGNORECASE), r"\1***"),
    # A header as a line, and as a part of a dict or a list that is shown.
    (re.compile(rf"""({_SECRET_HEADERS}: *)(?!b?['"])[^\r\n]+""", re.IGNORECASE), r"\1***"),
    (re.compile(rf"""({_SECRET_HEADERS}['"] ?[:,] ?b?)(['"])(?:\\.|(?!\2).)*\2""", re.IGNORECASE), r"\1\2***\2"),
    # Browsers send the key as a subprotocol.
    (re.compile(r"""(?<![\w./\\-])key\.[^\s",;\\\])}]+"""), "key.***"),
    # The first frame of a client.
    (re.compile(r"""(["']key["'] ?: ?)(["'])(?:\\.|(?!\2).)*"""), r"\1\2***"),
    (re.compile(r"\bqmtb_[\w-]+"), "qmtb_***"),
    # A JSON Web Token: each begins with {" in Base64.
    (re.compile(r"\beyJ[\w-]+\.[\w-]*(?:\.[\w-]*)?"), "eyJ***"),
)
# A text without any of these has nothing that the patterns find.
_SUSPECT = re.compile("key|token|secret|authorization|cookie|qmtb_|eyJ|%", re.IGNORECASE)
# websockets shows each frame at the level DEBUG: requests with keys, trade events with accounts. It cuts long ones, so
# no pattern would find all.
_FRAME_DUMPS = frozenset(("< %s", "> %s"))
# Texts of fewer characters are not hidden wherever they stand: they would be found in ordinary words.
_LEAST = 6


def redacted(text: str) -> str:
    """Return a text without keys, and with what was given to `hide` replaced."""
    if _state.hidden is not None:
        text = _state.hidden.sub(lambda found: _state.shown[found[0]], text)
    if _SUSPECT.search(text):
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
    return text


def hide(values: Mapping[str, str]) -> None:
    """Replace each of these texts by what may be shown of it, in every record from now on."""
    for value, shown in values.items():
        if len(value) >= _LEAST:
            spellings = (value, quote(value, safe=""), quote(value), value.encode().decode("latin-1"))
            _state.shown |= dict.fromkeys(spellings, shown)
    longest_first = sorted(_state.shown, key=len, reverse=True)
    _state.hidden = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def forget() -> None:
    """Forget what `hide` and `configure` were given: for tests, which share one process."""
    _state.shown, _state.hidden, _state.escapes = {}, None, True


# Control characters, and the separators that some viewers take for the end of a line or for a change of direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


_INDENT = "  "


def _indented(text: str) -> str:
    return "\n".join(_INDENT + _escaped(line) for line in text.splitlines())


class _State:
    """What holds for every record of this process."""

    def __init__(self) -> None:
        self.hidden: re.Pattern[str] | None = None
        self.shown: dict[str, str] = {}
        # JSON escapes by itself what would end a line.
        self.escapes = True
        # What makes records, before `protect` was called.
        self.before: Callable[..., logging.LogRecord] | None = None


_state = _State()


def _protected(*args: Any, **kwargs: Any) -> logging.LogRecord:
    """Make a record of which no handler can show a key, an account number, or a line of an outsider's."""
    assert _state.before is not None
    record = _state.before(*args, **kwargs)
    if record.exc_info and not isinstance(record.exc_info, bool) and record.exc_info[0] is not None:
        # Formatters take this text instead of making their own.
        text = redacted(logging.Formatter().formatException(record.exc_info))
        record.exc_text = _indented(text) if _state.escapes else text
    if isinstance(record.args, tuple) and record.args:
        if record.msg in _FRAME_DUMPS and hasattr(record.args[0], "opcode"):
            frame: Any = record.args[0]
            record.args = (f"{getattr(frame.opcode, 'name', frame.opcode)} of {len(frame.data)} bytes",)
            return record
        # One by one, because uvicorn's formatter takes the arguments of a line apart.
        record.args = tuple(_clean(each) if isinstance(each, str) else each for each in record.args)
    try:
        message = record.getMessage()
    except (TypeError, ValueError):
        # The arguments do not fit the message; the handler reports this later without raising in the caller.
        return record
    if (shown := _clean(message)) != message:
        record.msg, record.args = shown, ()
    return record


def _clean(text: str) -> str:
    text = redacted(text)
    return _escaped(text.rstrip("\n")) if _state.escapes and _CONTROLS.search(text) else text


# What uvicorn logs for each such client: a text frame that is not UTF-8 (with a traceback), no HTTP, another protocol,
# and a client that leaves in the handshake. An outsider could fill the log with them.
_CLIENT_FAULTS = (
    "Invalid UTF-8 sequence received from client",
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "ASGI callable returned without completing handshake.",
)


class ClientFaults(logging.Filter):
    """Drop what is the fault of a client: an answer or a close tells the client so."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(_CLIENT_FAULTS)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601), level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
            + f".{int(record.msecs):03d}"
            + time.strftime("%z", time.localtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def protect() -> None:
    """Keep keys, hidden texts and clients' faults out of what any server and library logs from now on."""
    if logging.getLogRecordFactory() is not _protected:
        _state.before = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_protected)
    for name in ("uvicorn.error", "uvicorn.access", "gunicorn.access", "hypercorn.access"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, ClientFaults) for existing in logger.filters):
            logger.addFilter(ClientFaults())


def configure(level: str, form: str) -> None:
    """Send every logger's records to stderr as `form` ("text" or "json") from `level` upwards."""
    protect()
    _state.escapes = form != "json"
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The gateway logs each connection itself, and uvicorn would add two lines.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets"):
        noisy = logging.getLogger(name)
        noisy.handlers[:] = []
        noisy.propagate = True
        noisy.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
