"""Log lines: keys are redacted in what a real server writes, and a JSON line is JSON whatever it says."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime

import pytest
from websockets.frames import Frame, Opcode

from qmt_bridge import log
from tests.support.waiting import SLOWNESS

KEY = "s3cret-key"
# What uvicorn and gunicorn call with; uvicorn's own line holds the path with the whole query string.
ACCEPT = ('%s - "WebSocket %s" [accepted]', "127.0.0.1:50000", f"/ws/trade?after=7&api_key={KEY}&ctl=1")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    out, err = capsys.readouterr()
    # Standard output belongs to what a command prints for its user.
    assert out == ""
    return err.splitlines()


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_key_of_an_accepted_websocket_is_redacted(form, capsys):
    log.configure("debug", form)
    # The line is off by default; an operator who turns it on must not get the key in it.
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)

    logging.getLogger("uvicorn.error").info(*ACCEPT)

    (line,) = lines(capsys)
    assert KEY not in line
    assert "/ws/trade?after=7&api_key=***&ctl=1" in line
    assert "127.0.0.1:50000" in line


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        pytest.param("GET /x?api_key=abc HTTP/1.1", "GET /x?api_key=*** HTTP/1.1", id="space-ends"),
        pytest.param("'/x?api_key=abc'", "'/x?api_key=***'", id="quote-ends"),
        pytest.param('"/x?api_key=abc"', '"/x?api_key=***"', id="double-quote-ends"),
        pytest.param("api_key=a%26b%20c#d", "api_key=***", id="percent-encoded"),
        pytest.param("API_KEY=abc", "API_KEY=***", id="capitals"),
        pytest.param("/x?%61pi%5Fkey=abc&a=1", "/x?%61pi%5Fkey=***&a=1", id="name-percent-encoded"),
        pytest.param("QMT_BRIDGE_API_KEY=abc", "QMT_BRIDGE_API_KEY=***", id="environment"),
        pytest.param("api_key=a api_key=b&api_key=c", "api_key=*** api_key=***&api_key=***", id="several"),
        pytest.param("/x?apikey=abc&Api-Key=d&a=1", "/x?apikey=***&Api-Key=***&a=1", id="misspelled"),
        pytest.param("/x?token=abc", "/x?token=***", id="another-name"),
        pytest.param("turnkey=1, tokens=2", "turnkey=1, tokens=2", id="no-parameter"),
        pytest.param("api_key=密钥", "api_key=***", id="not-ascii"),
        pytest.param("/x?api_key=a'b,c&d=e", "/x?api_key=***&d=e", id="quote-inside"),
        pytest.param("< authorization: Bearer a, b", "< authorization: ***", id="bearer"),
        pytest.param("X-API-Key: a'b", "X-API-Key: ***", id="header"),
        pytest.param(
            "(b'x-api-key', b'a\\'b'), (b'host', b'h')", "(b'x-api-key', b'***'), (b'host', b'h')", id="pairs"
        ),
        pytest.param("{'authorization': \"Bearer a'b\"}", "{'authorization': \"***\"}", id="mapping"),
        pytest.param("protocols: ['x', 'key.abc'], 'y'", "protocols: ['x', 'key.***], 'y'", id="protocol"),
        pytest.param("the file keys/key.py, feeder.key", "the file keys/key.py, feeder.key", id="no-protocol"),
        pytest.param('{"action":"auth","key":"a\\"b"}', '{"action":"auth","key":"***"}', id="frame"),
        pytest.param("qmtb_abc-_d is wrong", "qmtb_*** is wrong", id="prefix"),
        pytest.param("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJh.c2ln-_ is wrong", "eyJ*** is wrong", id="token"),
        pytest.param("100 % of api_keys", "100 % of api_keys", id="nothing-to-hide"),
    ],
)
def test_every_form_of_the_key_is_redacted_and_nothing_else(message, shown):
    assert log.redacted(message) == shown


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_key_in_a_traceback_is_redacted(form, capsys):
    log.configure("info", form)
    try:
        raise ValueError(f"cannot open /ws/trade?api_key={KEY}")
    except ValueError:
        logging.getLogger("any").exception("failed")
    shown = "\n".join(lines(capsys))
    assert KEY not in shown
    assert "cannot open /ws/trade?api_key=***" in shown


def test_arguments_that_do_not_fit_are_left_to_the_handler():
    log.protect()
    record = logging.getLogger("any").makeRecord("any", logging.INFO, "file", 1, "%s %s", ("one",), None)
    assert record.args == ("one",)


@pytest.mark.parametrize("name", ["uvicorn.error", "uvicorn.access", "gunicorn.access", "hypercorn.access"])
def test_a_foreign_server_with_its_own_logging_does_not_write_the_key(name, caplog):
    log.protect()
    # Every worker of a process, and every app that is made, says so again.
    log.protect()

    with caplog.at_level(logging.INFO, name):
        logging.getLogger(name).info(*ACCEPT)

    assert [record.getMessage() for record in caplog.records] == [
        '127.0.0.1:50000 - "WebSocket /ws/trade?after=7&api_key=***&ctl=1" [accepted]'
    ]
    assert sum(isinstance(item, log.ClientFaults) for item in logging.getLogger(name).filters) == 1


def test_json_lines_are_json_whatever_they_say(capsys):
    log.configure("info", "json")
    logger = logging.getLogger("feeder.publisher")

    logger.info('a "quoted" path C:\\x\nand a second line of %s', "行情\x00")
    try:
        raise ValueError("no\nsuch code")
    except ValueError:
        logger.exception("cannot serve %r", b"\xff")

    first, second = (json.loads(line) for line in lines(capsys))
    assert first["message"] == 'a "quoted" path C:\\x\nand a second line of 行情\x00'
    assert (first["level"], first["logger"]) == ("info", "feeder.publisher")
    assert first.keys() == {"time", "level", "logger", "message"}
    assert second["level"] == "error"
    assert second["message"] == "cannot serve b'\\xff'"
    assert second["traceback"].startswith("Traceback")
    assert second["traceback"].endswith("ValueError: no\nsuch code")


def test_the_time_of_a_json_line_is_the_records_with_its_zone():
    record = logging.LogRecord("any", logging.INFO, "file", 1, "x", (), None)
    record.created, record.msecs = 1_675_215_000.0625, 62.5

    shown = datetime.fromisoformat(json.loads(log.JsonFormatter().format(record))["time"])

    assert shown.tzinfo is not None
    assert shown.timestamp() == pytest.approx(1_675_215_000.062)


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        pytest.param("debug", ["debug", "info", "warning", "error"], id="debug"),
        pytest.param("info", ["info", "warning", "error"], id="info"),
        pytest.param("warning", ["warning", "error"], id="warning"),
        pytest.param("error", ["error"], id="error"),
    ],
)
def test_nothing_below_the_level_is_logged(level, shown, capsys):
    log.configure(level, "json")
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("gateway.feed"), name)("said")
    assert [json.loads(line)["level"] for line in lines(capsys)] == shown


def test_uvicorn_logs_only_warnings_and_each_line_once(capsys):
    # The state after uvicorn's own configuration.
    logging.getLogger("uvicorn.error").addHandler(logging.StreamHandler())
    log.configure("info", "text")
    log.configure("info", "text")

    logging.getLogger("uvicorn.error").info("connection open")
    logging.getLogger("uvicorn.error").warning("slow down")
    logging.getLogger("gateway.session").info("session began")

    said = [line.split(": ", 1)[1] for line in lines(capsys)]
    assert said == ["slow down", "session began"]


def test_only_a_clients_broken_text_frame_logs_no_traceback(caplog):
    log.protect()
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        logging.getLogger("uvicorn.error").error("Invalid UTF-8 sequence received from client.", exc_info=True)
        logging.getLogger("uvicorn.error").error("Exception in ASGI application")
    assert [record.getMessage() for record in caplog.records] == ["Exception in ASGI application"]


def test_importing_the_packages_leaves_the_programs_logging_alone():
    # A program that uses the client has configured its own logging, which must not change.
    code = (
        "import logging; import qmt_bridge, qmt_bridge.client, qmt_bridge.consumer; print(logging.getLogger().handlers)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30 * SLOWNESS
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "forged", ["a\nFORGED", "a\r\nFORGED", "a\x85FORGED", "a\u2028FORGED", "a\x1b[2JFORGED", "\x0bFORGED"]
)
def test_what_outsiders_send_forges_no_line(form, forged, capsys):
    log.configure("debug", form)

    logging.getLogger("gateway").warning("origin %s, path %s", forged, "/ws/股")
    try:
        raise ValueError(forged)
    except ValueError:
        logging.getLogger("gateway").exception("failed on %s", forged)

    written = capsys.readouterr().err.split("\n")[:-1]
    if form == "json":
        assert [json.loads(line)["level"] for line in written] == ["warning", "error"]
        return
    assert "/ws/股" in written[0]
    assert all(line.isprintable() for line in written)
    # Only a record begins at the first column; a traceback is indented.
    assert [line.split()[2] for line in written if not line.startswith("  ")] == ["WARNING", "ERROR"]


def test_what_outsiders_send_forges_no_line_of_another_server(capsys):
    logger = logging.getLogger("uvicorn.error")
    handler = logging.StreamHandler()
    log.protect()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        logger.warning("%s", "a\nFORGED")
    finally:
        logger.removeHandler(handler)
    assert any(r"a\nFORGED" in line for line in lines(capsys))


def test_hidden_texts_are_shown_masked_in_every_spelling(capsys):
    log.hide({"k&y 密钥-7": "***", "1000000365": "******0365", "short": "***"})
    log.configure("info", "text")
    logging.getLogger("any").info("%s of 1000000365, k%%26y%%20%%E5%%AF%%86%%E9%%92%%A5-7, short", "k&y 密钥-7")
    (line,) = lines(capsys)
    assert line.endswith("any: *** of ******0365, ***, short")


def test_frames_are_shown_without_their_content(capsys):
    log.configure("info", "text")
    frame = Frame(Opcode.TEXT, b'{"action":"auth","key":"' + b"x" * 100 + b's3cret"}')
    logging.getLogger("any").info("< %s", frame)
    (line,) = lines(capsys)
    assert line.endswith("any: < TEXT of 132 bytes")
