"""`qmt-bridge journal`: list, export, verify and backup, also while a feeder writes the journal."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from feeder.events import Unsent
from feeder.journal.journal import Journal
from qmt_bridge import cli
from qmt_bridge import journal_file as journal_file_module
from qmt_bridge.commands import journal as journal_commands
from qmt_bridge.config import ENV_PREFIX
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import Reader, find_journal, journal_path
from qmt_bridge.wire import frames

DAY_MS = 24 * 3600 * 1000
# Noon of a day, local time.
NOON_MS = int(datetime(2025, 3, 10, 12).timestamp() * 1000)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(f"{ENV_PREFIX}DATA_DIR", str(tmp_path))
    return journal_path(tmp_path, "sim")


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """Return an open journal of three days: accounts 1, 2, 1 on the first, 2 on the second, 账户 on the third."""
    journal = Journal(path, days=30)
    try:
        journal.append(journal.positions.give([order("1"), order("2"), order("1")], NOON_MS))
        journal.append(journal.positions.give([order("2", price=float("nan"), name="贵州茅台")], NOON_MS + DAY_MS))
        journal.append(journal.positions.give([order("账户")], NOON_MS + 2 * DAY_MS))
        yield journal
    finally:
        journal.close()


def order(account: str, **data: object) -> Unsent:
    return Unsent(account, "order", msgspec.Raw(frames.encode(data)))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, ["journal", *map(str, arguments)], catch_exceptions=False)


def exported(*arguments: str | Path) -> list[dict[str, Any]]:
    result = run("export", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout_bytes.splitlines()]


def damage(journal: Journal, *statements: str) -> None:
    """Change the file of a journal from another connection."""
    for statement in statements:
        journal._database.execute(statement)


def test_list_shows_all_accounts_while_the_journal_is_open(journal: Journal, path: Path) -> None:
    result = run("list")
    assert result.exit_code == 0
    first, head, *rows = result.stdout.splitlines()
    assert first.startswith(f"{path}: ")
    assert head.split("  ")[0] == "account"
    assert [row.split() for row in rows] == [
        ["(all)", "5", "1", "5", "0", "2025-03-10", "12:00:00", "2025-03-12", "12:00:00"],
        ["1", "2", "1", "2", "0", "2025-03-10", "12:00:00", "2025-03-10", "12:00:00"],
        ["2", "2", "1", "2", "0", "2025-03-10", "12:00:00", "2025-03-11", "12:00:00"],
        ["账户", "1", "1", "1", "0", "2025-03-12", "12:00:00", "2025-03-12", "12:00:00"],
    ]


def test_list_knows_what_was_deleted(journal: Journal, path: Path) -> None:
    while journal.prune(NOON_MS + 31 * DAY_MS):
        pass
    found = json.loads(run("list", "--json").stdout)
    assert (found["file"], found["events"], found["first"], found["last"]) == (str(path), 2, 4, 5)
    assert (found["oldest"], found["newest"]) == (3, 5)
    assert found["file_size"] >= 4096
    with Reader(path) as reader:
        assert found["size"] == sum(len(row.body) for row in reader.rows())
    one, two = found["accounts"]["1"], found["accounts"]["2"]
    # An account whose events were deleted keeps its newest number.
    assert (one["events"], one["oldest"], one["newest"]) == (0, 2, 2)
    assert (two["events"], two["first"], two["last"], two["oldest"], two["newest"]) == (1, 2, 2, 1, 2)
    assert (two["first_ms"], two["last_ms"]) == (NOON_MS + DAY_MS, NOON_MS + DAY_MS)
    assert run("list").stdout.splitlines()[3].split() == ["1", "0", "2", "2"]


def test_what_lies_before_a_hole_cannot_be_replayed(journal: Journal) -> None:
    damage(journal, "DELETE FROM event WHERE seq = 3")
    found = json.loads(run("list", "--json").stdout)
    assert (found["oldest"], found["events"]) == (3, 4)
    assert {name: holding["oldest"] for name, holding in found["accounts"].items()} == {"1": 2, "2": 1, "账户": 0}


def test_an_empty_journal_is_shown(path: Path) -> None:
    with closing(Journal(path, days=30)):
        assert run("list").stdout.splitlines()[2].split() == ["(all)", "0", "0", "0"]
        found = json.loads(run("list", "--json").stdout)
        assert (found["events"], found["oldest"], found["newest"], found["accounts"]) == (0, 0, 0, {})
        assert exported() == []
        assert run("verify").exit_code == 0


def test_export_has_every_event_as_it_was_published(journal: Journal) -> None:
    lines = exported()
    assert [(line["seq"], line["account"], line["number"], line["time"]) for line in lines] == [
        (1, "1", 1, NOON_MS),
        (2, "2", 1, NOON_MS),
        (3, "1", 2, NOON_MS),
        (4, "2", 2, NOON_MS + DAY_MS),
        (5, "账户", 1, NOON_MS + 2 * DAY_MS),
    ]
    assert lines[3] | {"data": {"price": None, "name": "贵州茅台"}, "type": "order"} == lines[3]


@pytest.mark.parametrize(
    ("arguments", "seqs"),
    [
        pytest.param(["--account", "1"], [1, 3], id="account"),
        pytest.param(["--account", "账户"], [5], id="not-ascii"),
        pytest.param(["--account", "nobody"], [], id="nobody"),
        pytest.param(["--after", "3"], [4, 5], id="after"),
        pytest.param(["--account", "2", "--after", "2"], [4], id="both"),
        pytest.param(["--since", "2025-03-11"], [4, 5], id="day"),
        pytest.param(["--since", "2025-03-11 12:01"], [5], id="minute"),
        pytest.param(["--since", "2025-03-11 12:00:00"], [4, 5], id="second"),
        pytest.param(["--since", "2025-03-11T12:00:01"], [5], id="second-later"),
        pytest.param(["--since", "2025-03-11", "--account", "2", "--after", "1"], [4], id="all"),
    ],
)
def test_export_takes_what_is_asked_for(journal: Journal, arguments: list[str], seqs: list[int]) -> None:
    assert [line["seq"] for line in exported(*arguments)] == seqs


def test_export_reads_in_parts_and_goes_on_with_what_comes_meanwhile(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file_module, "_ROWS", 2)
    with Reader(path) as reader:
        rows = reader.rows()
        seqs = [next(rows).seq]
        # The feeder and the reader do not block each other.
        journal.append(journal.positions.give([order("1")], NOON_MS))
        journal._database.execute("DELETE FROM event WHERE seq <= 2")
        seqs += [row.seq for row in rows]
    assert seqs == [1, 2, 3, 4, 5, 6]


def test_a_reader_cannot_change_anything(journal: Journal, path: Path) -> None:
    with Reader(path) as reader, pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader._database.execute("DELETE FROM event")


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_export_does_not_replace_a_journal(journal: Journal, path: Path, suffix: str) -> None:
    out = path.with_name(path.name + suffix)
    result = run("export", "--out", out)
    assert result.exit_code == 1
    assert "is a database" in result.output
    assert len(exported()) == 5


def test_export_writes_into_what_is_no_plain_file(journal: Journal, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("export", "--out", pipe).exit_code == 0
        assert os.read(reading, 1_000_000).count(b"\n") == 5
    finally:
        os.close(reading)
    assert pipe.is_fifo()


def test_export_to_a_file_is_whole_or_not_there(journal: Journal, tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"
    assert run("export", "--out", out).exit_code == 0
    whole = out.read_bytes()
    assert [json.loads(line)["seq"] for line in whole.splitlines()] == [1, 2, 3, 4, 5]
    damage(journal, "UPDATE event SET body = x'c1' WHERE seq = 5")
    result = run("export", "--out", out)
    assert result.exit_code == 1
    assert "cannot be read" in result.output
    assert out.read_bytes() == whole
    assert [file.name for file in tmp_path.glob("events*")] == ["events.jsonl"]


def test_verify_finds_nothing_wrong_with_what_a_feeder_has_written(journal: Journal, path: Path) -> None:
    result = run("verify")
    assert (result.exit_code, result.stdout) == (0, f"{path}: 5 events, 1 to 5: nothing is missing\n")
    while journal.prune(NOON_MS + 31 * DAY_MS):
        pass
    assert run("verify").exit_code == 0
    assert json.loads(run("verify", "--json").stdout) == {"file": str(path), "faults": []}


@pytest.mark.parametrize(
    ("statements", "faults"),
    [
        pytest.param(
            ["DELETE FROM event WHERE seq = 3", "UPDATE account SET newest = 1 WHERE name = '1'"],
            ["a hole: 3 is missing"],
            id="hole",
        ),
        pytest.param(
            ["DELETE FROM event WHERE seq IN (2, 3)", "UPDATE account SET newest = 1 WHERE name = '1'"],
            ["a hole: 2 to 3 are missing", "a hole in account *: 1 is missing before 4"],
            id="holes",
        ),
        pytest.param(
            ["DELETE FROM event WHERE seq = 5", "DELETE FROM account WHERE name = '账户'"],
            ["a hole: the newest position is 5, the last event's 4"],
            id="end",
        ),
        pytest.param(
            ["UPDATE event SET number = 3 WHERE seq = 3", "UPDATE account SET newest = 3 WHERE name = '1'"],
            ["a hole in account *: 2 is missing before 3"],
            id="hole-in-account",
        ),
        pytest.param(
            ["DROP INDEX event_account", "UPDATE event SET number = 1 WHERE seq = 3"],
            ["account * has number 1 at 3 after 1", "account * is at 2, its last event at 1"],
            id="duplicate",
        ),
        pytest.param(
            [
                "DROP INDEX event_account",
                "CREATE UNIQUE INDEX event_account ON event (account, number) WHERE seq != 2",
                "PRAGMA writable_schema=ON",
                "UPDATE sqlite_master SET sql = replace(sql, ' WHERE seq != 2', '')",
            ],
            [
                "the file is damaged: row 2 missing from index event_account",
                "the file is damaged: wrong # of entries in index event_account",
            ],
            id="integrity",
        ),
        pytest.param(["UPDATE event SET body = x'c1' WHERE seq = 2"], ["the body at 2 is no event: "], id="no-msgpack"),
        pytest.param(["UPDATE event SET body = x'81a1ffc0' WHERE seq = 2"], ["the body at 2 is no event: "], id="text"),
        pytest.param(
            ["UPDATE event SET body = (SELECT body FROM event WHERE seq = 1) WHERE seq = 2"],
            ["the body at 2 says that it is at 1"],
            id="other-body",
        ),
        pytest.param(
            ["UPDATE account SET newest = 7 WHERE name = '2'"], ["account * is at 7, its last event at 2"], id="account"
        ),
    ],
)
def test_verify_says_what_is_wrong(journal: Journal, path: Path, statements: list[str], faults: list[str]) -> None:
    damage(journal, *statements)
    result = run("verify")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == len(faults)
    assert all(line.startswith(f"{path}: {fault}") for line, fault in zip(lines, faults, strict=True))
    assert len(json.loads(run("verify", "--json").stdout)["faults"]) == len(faults)


def test_verify_knows_an_event_that_was_marked(journal: Journal) -> None:
    body = frames.encode({"type": "order", "seq": 5, "data": {}, "journaled": False})
    journal._database.execute("UPDATE event SET body = ? WHERE seq = 5", (body,))
    assert "the body at 5 says that it is not here" in run("verify").stdout


def test_verify_says_that_a_file_is_damaged(journal: Journal, path: Path) -> None:
    journal.append(journal.positions.give([order("1", text="x" * 300)] * 200, NOON_MS))
    journal.close()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    path.write_bytes(damaged)
    result = run("verify")
    assert result.exit_code == 1
    assert "the file is damaged" in result.stdout


def test_verify_stops_after_its_limit_of_faults(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_commands, "MAX_FAULTS", 3)
    with closing(Journal(path, days=30)) as journal:
        journal.append(journal.positions.give([order("1")] * 9, NOON_MS))
        damage(journal, "UPDATE event SET body = x'c1'")
        assert len(run("verify").stdout.splitlines()) == 3


def test_verify_sees_one_instant_while_the_feeder_deletes(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_file_module, "_ROWS", 1)
    rows = Reader.rows

    def meanwhile(reader: Reader, **options: Any) -> Iterator[Any]:
        for row in rows(reader, **options):
            if row.seq == 2:
                damage(journal, "DELETE FROM event WHERE seq <= 4")
            yield row

    monkeypatch.setattr(Reader, "rows", meanwhile)
    with Reader(path) as reader:
        assert list(reader.faults()) == []


# -- Which journal


def test_the_only_journal_is_taken_and_of_several_one_has_to_be_named(journal: Journal, tmp_path: Path) -> None:
    assert len(exported()) == 5
    journal.close()
    Journal(journal_path(tmp_path, "xtquant"), days=30).close()
    result = run("export")
    assert result.exit_code == 1
    assert "journal-sim.sqlite3, journal-xtquant.sqlite3" in result.output
    assert len(exported("--source", "sim")) == 5
    assert exported("--source", "xtquant") == []
    assert exported("--file", journal_path(tmp_path, "xtquant")) == []
    assert find_journal(tmp_path, "sim") == journal_path(tmp_path, "sim")


@pytest.mark.parametrize("command", ["list", "export", "verify"])
def test_a_journal_that_is_not_there_is_named_and_not_made(command: str, path: Path, tmp_path: Path) -> None:
    for arguments, told in (
        ([], f"there is no trade journal in {tmp_path}"),
        (["--source", "sim"], f"there is no trade journal {path}"),
        (["--file", path], f"there is no trade journal {path}"),
    ):
        result = run(command, *arguments)
        assert result.exit_code == 1
        assert told in result.output
    assert list(tmp_path.iterdir()) == []


def later(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE event (seq INTEGER)")
    database.execute("PRAGMA user_version=99")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        pytest.param(
            lambda database: database.execute("CREATE TABLE event (seq INTEGER)"), "earlier version", id="old"
        ),
        pytest.param(later, "later version", id="new"),
        pytest.param(lambda database: database.execute("CREATE TABLE other (a)"), "is no trade journal", id="other"),
    ],
)
def test_a_file_of_another_kind_is_refused(path: Path, make: Callable[[sqlite3.Connection], object], told: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        make(database)
    with pytest.raises(ConfigError, match=told):
        Reader(path)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"not a database, and long enough to be looked at" * 100)
    result = run("verify")
    assert result.exit_code == 1
    assert "file is not a database" in result.output


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break in another way there")
def test_export_into_a_closed_pipe_ends_without_an_error(journal: Journal, path: Path) -> None:
    for _ in range(20):
        journal.append(journal.positions.give([order("1", text="x" * 1000) for _ in range(100)], NOON_MS))
    command = [sys.executable, "-m", "qmt_bridge.cli", "journal", "export", "--file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        assert json.loads(export.stdout.readline())["seq"] == 1
        export.stdout.close()
        assert export.stderr.read() == b""


def test_no_command_changes_what_a_broken_pipe_does_to_the_process(journal: Journal) -> None:
    if hasattr(signal, "SIGPIPE"):
        before = signal.getsignal(signal.SIGPIPE)
        run("export")
        assert signal.getsignal(signal.SIGPIPE) is before


def test_a_backup_of_a_running_journal_is_a_journal(journal: Journal, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy.sqlite3"
    result = run("backup", out)
    assert (result.exit_code, result.output) == (0, f"{out}: 5 events, 1 to 5\n")
    assert exported("--file", out) == exported()
    assert run("verify", "--file", out).exit_code == 0
    assert run("list", "--file", out).stdout.splitlines()[2].split()[:4] == ["(all)", "5", "1", "5"]
    # One file, and nothing beside it.
    assert sorted(found.name for found in tmp_path.glob("copy*")) == [out.name]
    # The copy continues from its own newest event, not from that of the original.
    journal.append(journal.positions.give([order("1")], NOON_MS))
    restored = tmp_path / "restored" / path.name
    restored.parent.mkdir()
    out.rename(restored)
    with closing(Journal(restored, days=30)) as again:
        assert (again.newest, again.newest_of("1"), again.oldest()) == (5, 2, 0)


def test_a_copy_of_the_main_file_alone_lacks_the_newest_events(journal: Journal, path: Path, tmp_path: Path) -> None:
    # This is why the backup command exists.
    copy = tmp_path / "copy.sqlite3"
    copy.write_bytes(path.read_bytes())
    assert run("verify", "--file", copy).exit_code == 1 or exported("--file", copy) != exported()


@pytest.mark.parametrize("content", [b"", b"theirs"])
def test_a_backup_overwrites_nothing(journal: Journal, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "copy.sqlite3"
    out.write_bytes(content)
    result = run("backup", out)
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert out.read_bytes() == content
    assert [found.name for found in tmp_path.glob("copy*")] == [out.name]


def test_a_backup_that_fails_leaves_nothing(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(tmp_path.iterdir())

    def fail(reader: Reader) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Reader, "holdings", fail)
    result = run("backup", tmp_path / "copy.sqlite3")
    assert result.exit_code == 1
    assert "database or disk is full" in result.output
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", ["no/copy.sqlite3", "folder"])
def test_a_backup_to_where_nothing_can_be_written_is_an_error(journal: Journal, tmp_path: Path, out: str) -> None:
    (tmp_path / "folder").mkdir()
    result = run("backup", tmp_path / out)
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize("command", ["backup", "export --out"])
def test_only_the_owner_may_read_what_comes_out_of_a_journal(journal: Journal, tmp_path: Path, command: str) -> None:
    out = tmp_path / "out"
    assert run(*command.split(), out).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


@pytest.mark.parametrize("command", ["backup", "export --out"])
def test_what_comes_out_of_a_journal_takes_no_file_of_the_users(journal: Journal, tmp_path: Path, command: str) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    names = ["out.part", "out.part-journal", "out.part-wal"]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    assert run(*command.split(), tmp_path / "out").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == before | {"out", *names}
    assert all((tmp_path / name).read_bytes() == b"mine" for name in names)
