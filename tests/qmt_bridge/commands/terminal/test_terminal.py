"""What a terminal shows, and what a pipe gets instead: tables, progress, QR codes."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import segno
from click.testing import CliRunner

from qmt_bridge import cli
from qmt_bridge.commands.gateway_address import page_url
from qmt_bridge.commands.terminal import progress as bars
from qmt_bridge.commands.terminal.progress import progress, waiting
from qmt_bridge.commands.terminal.qr_code import qr_code
from qmt_bridge.commands.terminal.table import plain_table, table
from qmt_bridge.config import Config
from qmt_bridge.language import catalog

ANSI = re.compile(r"\x1b\[[\d;]*m")
HEADS = ("client", "frames", "held by")
ROWS = [("a3f09c1d-17", 12345, "[bold]贵州茅台[/]"), ("b", 7, "x")]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@contextmanager
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    """Let the output be a terminal of 60 columns."""
    found = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    with redirect_stdout(found), redirect_stderr(found):
        yield found


def test_table_of_a_pipe_is_plain_and_independent_of_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    catalog.speak("zh")
    expected = "client       frames  held by\na3f09c1d-17  12345   [bold]贵州茅台[/]\nb            7       x"
    assert table(HEADS, ROWS) == expected


def test_wide_characters_are_counted_as_two_columns() -> None:
    assert plain_table(("a", "b"), [("网关", "1"), ("x", "2")]) == "a     b\n网关  1\nx     2"


def test_table_of_a_terminal_fits_it_and_keeps_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog.speak("zh")
    with on_terminal(monkeypatch):
        lines = ANSI.sub("", table(HEADS, ROWS)).splitlines()
    assert lines[0].split() == ["客户端", "帧", "订阅者"]
    # Brackets of a cell are no markup, and numbers stand below each other.
    assert "[bold]贵州茅台[/]" in lines[2]
    assert lines[2].index("12345") + 4 == lines[3].index("7")


def test_progress_of_a_pipe_shows_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "QUIET", 0)
    with progress("reading", 10) as done:
        done(5)
        waiting(done, 0)
    assert capsys.readouterr() == ("", "")


def test_progress_of_a_terminal_shows_how_much_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "QUIET", 0)
    with on_terminal(monkeypatch) as terminal, progress("reading", 10) as done:
        done(5)
    assert "reading" in terminal.getvalue()
    assert "50%" in terminal.getvalue()


def test_progress_that_is_not_wanted_or_soon_over_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_terminal(monkeypatch) as terminal:
        for total, shown in ((10, False), (0, True), (10, True)):
            with progress("reading", total, shown=shown) as done:
                done(10)
    assert terminal.getvalue() == ""


def test_qr_code_holds_the_address_and_nothing_else() -> None:
    lines = ANSI.sub("", qr_code("https://quotes.example/")).splitlines()
    assert len({len(line) for line in lines}) == 1
    modules = list(segno.make_qr("https://quotes.example/", error="l").matrix_iter(border=2))
    # Two rows a line: the upper half of a character and the lower one; what is filled is a light module.
    halves = {"█": (0, 0), "▀": (0, 1), "▄": (1, 0), " ": (1, 1)}
    drawn = [[halves[sign] for sign in line[2:]] for line in lines]
    rows = [[pair[half] for pair in line] for line in drawn for half in (0, 1)]
    assert rows[: len(modules)] == [list(map(int, row)) for row in modules]


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({}, ("http://127.0.0.1:8000/", False)),
        ({"host": "192.168.1.5", "tls_cert": "c"}, ("https://192.168.1.5:8000/", True)),
        ({"host": "0.0.0.0", "tls_cert": "c", "hosts": ("quotes.example",)}, ("https://quotes.example:8000/", True)),
        ({"behind_proxy": ("127.0.0.1",), "hosts": ("quotes.example",)}, ("https://quotes.example/", True)),
        ({"host": "::1"}, ("http://[::1]:8000/", False)),
    ],
)
def test_page_address_is_the_one_that_a_phone_reaches(settings: dict[str, Any], url: tuple[str, bool]) -> None:
    assert page_url(Config(api_key="0123456789abcdef", **settings)) == url


# What prints nothing, or JSON anyway, or runs until it is stopped.
WITHOUT_JSON = {
    *("init", "up", "feeder", "gateway", "store", "forward", "alerts", "replay", "record", "completion", "mcp"),
    "journal export",
}


def test_every_command_that_prints_data_has_json() -> None:
    lacking = set()

    def look(command: Any, name: str) -> None:
        inner = getattr(command, "commands", {})
        for each, below in inner.items():
            look(below, f"{name} {each}".strip())
        if name and (not inner or command.invoke_without_command):
            lacking.update({name} if "as_json" not in {each.name for each in command.params} else ())

    look(cli.main, "")
    assert lacking == WITHOUT_JSON


def test_json_of_keys_holds_no_secret_but_the_new_one(tmp_path: Path) -> None:
    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(cli.main, ["key", *arguments, "--json", "--data-dir", str(tmp_path)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    made = run("add", "desk", "--scopes", "market,trade", "--accounts", "1000000365")
    assert made["key"].startswith("qmtb_")
    (listed,) = run("list")
    assert (listed["name"], listed["scopes"], listed["expires"]) == ("desk", ["market", "trade"], None)
    assert "1000000365" not in json.dumps(listed)
    assert "key" not in listed
    assert run("rotate", "desk")["key"] != made["key"]
    assert run("revoke", "desk") == {"revoked": "desk"}
