"""Logging, configured once by a command: text or JSON lines on stderr, API keys redacted.

Modules only do ``logger = logging.getLogger(__name__)``; nothing but a command calls `configure`. The ASGI app
installs only the redaction, because another server that runs the app configures its own logging.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import time
from typing import Any

import orjson

# uvicorn writes the whole query string at INFO when it accepts a WebSocket (logger "uvicorn.error"), so
# --no-access-log does not help.
# The name may be percent-encoded, which the key check decodes like every other server.
_NAME = r"(?:a|%61)(?:p|%70)(?:i|%69)(?:_|%5f)(?:k|%6b)(?:e|%65)(?:y|%79)="
# A misspelled parameter, such as ?apikey= or ?token=: the key check ignores it, but its value may be the key.
_MEANT = r"(?<=[?&])[\w%-]*(?:key|token|secret)="
_KEY = re.compile(rf"({_NAME}|{_MEANT})[^&\s\"']*", re.IGNORECASE)


class RedactKeys(logging.Filter):
    """Replace the value of ``api_key=`` in every record that passes, its traceback included."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            # The arguments do not fit the message; the handler reports this later without raising in the caller.
            return True
        if _KEY.search(message):
            record.msg, record.args = _KEY.sub(r"\1***", message), ()
        if record.exc_info and not record.exc_text:
            # Formatters take this text instead of making their own.
            record.exc_text = _KEY.sub(r"\1***", logging.Formatter().formatException(record.exc_info))
        return True


# What uvicorn logs for each such client: a text frame that is not UTF-8 (with a traceback), no HTTP, another protocol,
# and a client that leaves in the handshake. An outsider could fill the log with them.
_CLIENT_FAULTS = (
    "Invalid UTF-8 sequence received from client",
    "Invalid HTTP request received.",
    "Unsupported upgrade request.",
    "ASGI callable returned without completing handshake.",
)


# Control characters, and the separators that some viewers take for the end of a line or for a change of direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _escaped(text: str) -> str:
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


class OneLine(logging.Filter):
    """Escape control characters in every message: what outsiders send must not look like a line of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            return True
        if _CONTROLS.search(message):
            record.msg, record.args = _escaped(message.rstrip("\n")), ()
        return True


class TextFormatter(logging.Formatter):
    """One line a record; the lines of a traceback, which may quote what an outsider sent, are indented below it."""

    def formatException(self, ei: Any) -> str:
        return _indented(super().formatException(ei))

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_text and not record.exc_text.startswith(_INDENT):
            record.exc_text = _indented(record.exc_text)
        return super().format(record)


_INDENT = "  "


def _indented(text: str) -> str:
    return "\n".join(_INDENT + _escaped(line) for line in text.splitlines())


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


def tolerate_any_text() -> None:
    """Let standard output and error take every text: what their encoding lacks comes as an escape such as ``\\u6210``.

    Windows redirects to the encoding of the system, which has no Chinese outside China; an error message that cannot be
    written would hide its own cause.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tame_server_logs() -> None:
    """Keep keys and clients' faults out of the logs of uvicorn, gunicorn and hypercorn, with any configuration."""
    for name in ("uvicorn.error", "uvicorn.access", "gunicorn.access", "hypercorn.access"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, RedactKeys) for existing in logger.filters):
            logger.addFilter(RedactKeys())
            logger.addFilter(ClientFaults())
            logger.addFilter(OneLine())


def configure(level: str, form: str) -> None:
    """Send every logger's records to stderr as `form` ("text" or "json") from `level` upwards."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedactKeys())
    if form == "json":
        handler.setFormatter(JsonFormatter())
    else:
        # JSON escapes by itself what would end a line.
        handler.addFilter(OneLine())
        handler.setFormatter(TextFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The gateway logs each connection itself, and uvicorn would add two lines.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "websockets"):
        noisy = logging.getLogger(name)
        noisy.handlers[:] = []
        noisy.propagate = True
        noisy.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
