"""A database that was made to cost memory or time in the place of a journal is refused by name, without a traceback."""

from __future__ import annotations

import logging
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from feeder.events import Unsent
from feeder.journal.journal import Journal
from qmt_bridge import cli, journal_file
from qmt_bridge.journal_file import Reader, foreign_object, harden, journal_path
from qmt_bridge.wire import frames
from tests.support import hostile_files as hostile
from tests.support.limited import MIB, run_limited

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limits of a process are those of Linux")

ENDLESS = "WITH RECURSIVE n(seq) AS (SELECT 1 UNION ALL SELECT seq + 1 FROM n)"
BODY = '{"type": "order", "account": "1", "seq": 1, "time": 1, "data": {}}'
EVENT = "INSERT INTO event (seq, account, time_ms, body, number) VALUES ({}, {}, {}, {}, {})"
ACCOUNT = "CREATE TABLE account (name TEXT PRIMARY KEY, newest INTEGER NOT NULL) WITHOUT ROWID"
LIVES = "CREATE TABLE lives (epoch INTEGER NOT NULL, newest INTEGER NOT NULL, numbers BLOB NOT NULL)"


def event(
    seq: object = 1, account: str = "'1'", time: object = 1, body: str = f"CAST('{BODY}' AS BLOB)", number: object = 1
) -> str:
    return EVENT.format(seq, account, time, body, number)


def computed(column: str) -> list[str]:
    """Return statements for a journal with another table of events."""
    table = f"CREATE TABLE event (seq INTEGER PRIMARY KEY AUTOINCREMENT, account TEXT, time_ms INTEGER, {column})"
    return ["DROP TABLE event", table]


# In the place of a journal's tables, or beside them: what it is called in the refusal, and the statements.
FOREIGN = {
    "view": (
        "the view 'event'",
        [
            "DROP TABLE event",
            f"CREATE VIEW event AS {ENDLESS} SELECT seq, '1' AS account, 1 AS time_ms, "
            "zeroblob(1000000) AS body, seq AS number FROM n",
        ],
    ),
    "accounts": (
        "the view 'ACCOUNT'",
        [
            "DROP TABLE account",
            f"CREATE VIEW ACCOUNT AS {ENDLESS} SELECT CAST(seq AS TEXT) AS name, seq AS newest FROM n",
        ],
    ),
    "computed": (
        "a computed column in 'event'",
        computed("number INTEGER, body BLOB AS (zeroblob(900000000)) VIRTUAL"),
    ),
    "condition": (
        "a condition (CHECK) on 'event'",
        computed("number INTEGER, body BLOB check (length(zeroblob(900000000)) > 0)"),
    ),
    "trigger": (
        "the trigger 'evil'",
        ["CREATE TRIGGER evil AFTER INSERT ON account BEGIN DELETE FROM event; END"],
    ),
    "index": (
        "the index 'evil', which computes values",
        ["CREATE INDEX evil ON event (length(zeroblob(100000000)))"],
    ),
}
# What is told of them, and rows that no feeder has written.
ROWS = {
    "type-of-account": ("1 is damaged", [event(account="x'ff'")]),
    "type-of-time": ("1 is damaged", [event(time="'abc'")]),
    "type-of-body": ("1 is damaged", [event(body="'text'")]),
    "type-of-number": ("1 is damaged", [event(number="'one'")]),
    "late": ("1 is damaged", [event(time=2**62)]),
    "early": ("1 is damaged", [event(time=-5)]),
    "large": ("too big", [event(body=f"zeroblob({20 * MIB})")]),
    "newest": ("too large", [event(seq=2**63 - 1)]),
    "sequence": ("no numbers", [event(), "UPDATE sqlite_sequence SET seq = 'abc'"]),
    "no-sequence": ("too large", [event(), "UPDATE sqlite_sequence SET seq = -1"]),
    "name": ("characters", ["INSERT INTO account VALUES (printf('%.*c', 2000, 'x'), 1)"]),
    "position": ("too large", ["INSERT INTO account VALUES ('1', -1)"]),
}


def run(command: str, path: Path) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it wrote."""
    result = CliRunner().invoke(cli.main, ["journal", *command.split(), "--file", str(path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, result.output


def read(journal: Journal) -> None:
    """Read a journal in every way of the feeder; only errors of SQLite are expected."""
    journal.begin_epoch(5)
    for call in (
        lambda: journal.read(0),
        lambda: journal.read(0, "1"),
        lambda: journal.since(0),
        lambda: journal.oldest("1"),
    ):
        with suppress(sqlite3.Error):
            call()
    while journal.prune(5):
        pass
    journal.append(journal.positions.give([Unsent("1", "order", frames.checked(b"{}"))], 5))
    assert journal.failure is None


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_table_of_a_journal_is_refused_by_name(tmp_path: Path, name: str) -> None:
    said, statements = FOREIGN[name]
    path = hostile.journal_of(tmp_path / "a.sqlite3", *statements)
    for command in ("list", "export", "verify", f"backup {tmp_path / 'copy'}"):
        code, output = run(command, path)
        assert code == 1
        assert f"a.sqlite3 is no trade journal: it has {said}" in output
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_feeder_sets_aside_what_is_no_table_of_a_journal(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    said, statements = FOREIGN[name]
    path = hostile.journal_of(journal_path(tmp_path, "sim"), *statements)
    journal = Journal(path, days=30)
    try:
        read(journal)
    finally:
        journal.close()
    assert said in caplog.text
    assert [record.exc_info for record in caplog.records if record.levelno >= logging.ERROR] == [None]
    assert list(tmp_path.glob("*.damaged-*"))


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_no_feeder_writes_is_refused_by_name(tmp_path: Path, name: str) -> None:
    said, statements = ROWS[name]
    path = hostile.journal_of(tmp_path / "a.sqlite3", *statements)
    outputs = [run(command, path) for command in ("list", f"export --out {tmp_path / 'out'}", "verify")]
    assert any(code == 1 and "a.sqlite3" in output and said in output for code, output in outputs), outputs


@pytest.mark.parametrize("name", ROWS)
def test_feeder_lives_with_a_row_that_it_has_not_written(tmp_path: Path, name: str) -> None:
    path = hostile.journal_of(journal_path(tmp_path, "sim"), *ROWS[name][1])
    journal = Journal(path, days=30)
    try:
        read(journal)
    finally:
        journal.close()


@pytest.mark.parametrize(
    "row", ["(9e999, 1, x'7b7d')", "(1, 9e999, x'7b7d')", "('x', 1, 5)", "(1, 1, 'text')", f"({2**63 - 1}, 1, x'7b7d')"]
)
def test_feeder_lives_with_an_epoch_that_is_none(tmp_path: Path, row: str) -> None:
    path = hostile.journal_of(journal_path(tmp_path, "sim"), LIVES, f"INSERT INTO lives VALUES {row}")
    journal = Journal(path, days=30)
    try:
        read(journal)
    finally:
        journal.close()


def test_a_schema_that_is_no_text_is_refused_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = hostile.journal_of(journal_path(tmp_path, "sim"))
    damaged = path.read_bytes().replace(b"tableevent", b"table\xffvent", 1)
    path.write_bytes(damaged.replace(b"CREATE TABLE event (seq", b"CREATE TABLE event )seq", 1))
    code, output = run("list", path)
    assert (code, "sqlite3: its schema is damaged" in output) == (1, True), output
    journal = Journal(path, days=30)
    try:
        read(journal)
    finally:
        journal.close()
    assert "its schema is damaged" in caplog.text


def test_epochs_without_bounds_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = f"INSERT INTO lives {ENDLESS} SELECT seq, seq, x'7b7d' FROM n LIMIT 100001"
    journal = Journal(hostile.journal_of(journal_path(tmp_path, "sim"), LIVES, rows), days=30)
    try:
        assert "more epochs of the feeder than can be" in caplog.text
    finally:
        journal.close()


def test_tables_and_views_of_the_user_stay(tmp_path: Path) -> None:
    path = journal_path(tmp_path, "sim")
    statements = (
        "CREATE VIEW mine AS SELECT * FROM event",
        "CREATE TABLE notes (a CHECK (a > 0))",
        "CREATE INDEX by_time ON event (time_ms)",
    )
    hostile.journal_of(path, event(), "INSERT INTO account VALUES ('1', 1)", *statements, "ANALYZE")
    journal = Journal(path, days=10**6)
    try:
        read(journal)
    finally:
        journal.close()
    assert not list(tmp_path.glob("*.damaged-*"))
    assert run("list", path)[0] == 0


def test_controls_in_an_account_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = hostile.journal_of(tmp_path / "a.sqlite3", event(account="char(27) || '[2J'"))
    code, output = run("list", path)
    assert (code, "\x1b" in output, r"\x1b[2J" in output) == (0, False, True)


def test_functions_of_a_schema_are_not_trusted(tmp_path: Path) -> None:
    path = hostile.journal_of(tmp_path / "a.sqlite3")
    with closing(sqlite3.connect(path)) as database:
        harden(database)
        assert database.execute("PRAGMA trusted_schema").fetchone() == (0,)
        assert foreign_object(database) is None
        with pytest.raises(sqlite3.Error, match="too big"):
            database.execute("SELECT length(hex(zeroblob(9000000)))").fetchone()
    with Reader(path) as reader, pytest.raises(sqlite3.Error):
        reader._database.execute("ATTACH ':memory:' AS other")


@LINUX
@pytest.mark.parametrize("command", ["list", "export", "verify"])
@pytest.mark.parametrize("size", [15 * MIB, 40 * MIB])
def test_large_bodies_are_read_within_limits(tmp_path: Path, command: str, size: int) -> None:
    rows = (event(n, body=f"zeroblob({size})", number=n) for n in range(1, 25))
    path = hostile.journal_of(tmp_path / "a.sqlite3", *rows)
    code = f"main(['journal', '{command}', '--file', sys.argv[1]])"
    ended = run_limited("from qmt_bridge.cli import main\nimport qmt_bridge.journal_file", code, path, room=160 * MIB)
    path.unlink()
    assert "Traceback" not in ended.output, ended.output[-800:]
    assert "a.sqlite3" in ended.output


@LINUX
def test_accounts_without_end_are_refused_within_limits(tmp_path: Path) -> None:
    path = hostile.journal_of(
        tmp_path / "a.sqlite3",
        f"INSERT INTO event {ENDLESS} SELECT seq, printf('%.200d', seq), 1, x'7b7d', 1 FROM n LIMIT 200000",
    )
    for command in ("list", "verify"):
        code = f"main(['journal', '{command}', '--file', sys.argv[1]])"
        ended = run_limited(
            "from qmt_bridge.cli import main\nimport qmt_bridge.journal_file", code, path, room=80 * MIB
        )
        assert ended.code == 1
        assert "accounts" in ended.output, ended.output[-500:]
        assert "Traceback" not in ended.output


@LINUX
@pytest.mark.parametrize(
    "row", ["account SELECT {name}, 1", "event SELECT seq, {name}, 1, x'7b7d', 1"], ids=["accounts", "events"]
)
def test_names_without_end_are_refused_within_limits(tmp_path: Path, row: str) -> None:
    insert = f"INSERT INTO {row} FROM n LIMIT 100".format(name="printf('%.*c', 2000000, 'x') || seq")
    into, _, select = insert.partition(" SELECT ")
    path = hostile.journal_of(tmp_path / "a.sqlite3", f"{into} {ENDLESS} SELECT {select}")
    code = "main(['journal', 'list', '--file', sys.argv[1]])"
    ended = run_limited("from qmt_bridge.cli import main\nimport qmt_bridge.journal_file", code, path, room=80 * MIB)
    path.unlink()
    assert (ended.code, "or a name of more than 1,000" in ended.output) == (1, True), ended.output[-500:]


def test_bytes_of_a_replay_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (event(n, body="zeroblob(3000000)", number=n) for n in range(1, 9))
    path = hostile.journal_of(journal_path(tmp_path, "sim"), *rows)
    with Reader(path) as reader:
        some = reader._some_rows("SELECT seq, account, number, time_ms, body FROM event", ())
        assert len(some) == 2
        assert [row.seq for row in reader.rows()] == list(range(1, 9))
    journal = Journal(path, days=10**6)
    try:
        assert [seq for seq, _, _ in journal.since(0)] == [1, 2]
        assert [seq for seq, _, _ in journal.since(0, 7)] == [8]
    finally:
        journal.close()
    assert journal_file.MOST_VALUE == 16 * MIB
