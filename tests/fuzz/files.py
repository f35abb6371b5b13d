"""Hostile files: mutations of good tapes, CSV files, settings, keys, positions and journals, and texts of keys.

    python -m tests.fuzz.files --seconds 60 --seed 1

A child process reads them, with a bounded address space. Each case has a seed of its own, made of the seed and its
number, so that `--only NAME --case NUMBER` repeats it. What a reader may raise is its documented error, a refusal;
anything else, a case of more than ten seconds of processor time, and the end of the child are faults.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click

from tests.support import hostile_files as hostile
from tests.support.paths import EARLIER, ROOT

# Bytes of address space of the child beyond its imports; a case has far less than a tenth.
ROOM = 768 * 1024 * 1024
# Seconds of processor time of one case, since a disk may be busy with something else; and how much longer than the time
# of all the child may take.
LONGEST = 10.0
GRACE = 60.0
MOST_FAULTS = 20
# What stands where a number, a length, a name or a text is expected.
ODD = (
    *(b"", b"\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80", b"\xf0\x9f", b"\n", b"\r", b'"', b"'", b"\\", b",", b".."),
    *(b"[" * 600, b"{" * 600, b"9" * 5000, b"-1", b"1e999", b"nan", b"null", b"NaN", b"../../evil", b"C:evil", b"CON"),
    *(hostile.MARK, hostile.MARK[:-1] + b"1", b"\x28\xb5\x2f\xfd", b"\x1f\x8b", b"SQLite format 3\0", b"\xff\xfe"),
)
VALUES = ("0", "-1", "1.5", "9e999", "'text'", "x'00ff'", "NULL", str(2**63 - 1), str(-(2**63)), "zeroblob(100000)")
CELLS = (
    *(
        "1",
        "-1.5",
        "",
        "nan",
        "[1, 2]",
        "[1, None]",
        "{'a': [1]}",
        "1,234",
        "5%",
        "600519.SH",
        "20250701105100",
        "9" * 99,
    ),
    *("1751338260000", "2025-07-01 10:51:00", "'", "[[[", "-" * 99, "np.float64(1)", "１", "\ufeff", "=cmd()", "true"),
)

Case = Callable[[random.Random, Path], None]


def mutated(rng: random.Random, content: bytes) -> bytes:
    """Return `content` with some bytes changed, cut, doubled or replaced."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 64, 1024))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = data[at : at + size] * rng.choice((1, 2, 50))
            case 4:
                data[at : at + rng.choice((0, size))] = rng.choice(ODD)
            case 5 if rng.random() < 0.3:
                del data[at:]
    return bytes(data)


def text(rng: random.Random) -> str:
    """Return a short text of any characters, halves of surrogate pairs too."""
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(rng.randrange(12)))


def value(rng: random.Random, levels: int = 3) -> Any:
    """Return what JSON can hold."""
    kind = rng.randrange(8 if levels else 6)
    if kind == 6:
        return [value(rng, levels - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(("a", "time", "data", "type", "")): value(rng, levels - 1) for _ in range(rng.randrange(4))}
    return (None, True, rng.choice((0, -1, 2**70)), rng.choice((1.5, 1e308)), rng.choice(("", "1.SH", "../x")), 7)[kind]


def tapes(rng: random.Random, folder: Path) -> None:
    """Read a tape as `tape info`, `tape export` and the replay do, and continue it."""
    from feeder.replay.recording import open_recording
    from qmt_bridge.commands.tapes import info_text
    from qmt_bridge.tapes import parquet, survey
    from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame, zstd

    path = folder / "day.tape"
    topics = ("quote/600519.SH/tick/", "whole/SH/", "trade/1/", "trade/", "formula/x/", "l2/1.SH/0/", "status/feeder/")
    records = []
    for seq in range(rng.randrange(1, 20)):
        body = json.dumps({"600519.SH": value(rng)} if rng.random() < 0.5 else value(rng)).encode()
        if rng.random() < 0.3:
            body = json.dumps({"type": "order", "account": "1", "seq": seq, "data": value(rng)}).encode()
        topic = rng.choice((*topics, "tape/session/", "quote/x", "CON/x/", "", "a" * 60_000)).encode()
        record = hostile.record(topic, mutated(rng, body) if rng.random() < 0.3 else body, seq)
        records.append(mutated(rng, record) if rng.random() < 0.1 else record)
    hostile.tape_of(path, *records, packed=rng.random() < 0.5)
    if rng.random() < 0.3:
        found = sorted(EARLIER.rglob("*.tape*"))
        path.write_bytes(rng.choice(found).read_bytes() if found else b"")
    if rng.random() < 0.5:
        content = mutated(rng, path.read_bytes())
        if rng.random() < 0.5:
            # With a right CRC, so that the damage is found where it is used.
            inner = content[20:200_000]
            content = hostile.block(zstd.compress(inner) if rng.random() < 0.5 else inner)
        path.write_bytes(content)
    _each(
        lambda: (info_text(found := survey.survey(path)), survey.to_object(found), found.faults),
        lambda: parquet.export(path, folder / "out"),
        lambda: _play(open_recording(path, 1)),
        lambda: TapeWriter(path, Recorded(1, session_frame(["quote/"], "1"))).close(),
    )
    assert not (ROOT.parent / "evil").exists()
    assert {entry.name for entry in folder.iterdir()} <= {"day.tape", "out"}


def csvs(rng: random.Random, folder: Path) -> None:
    """Read a CSV file as the replay does."""
    from feeder.replay.recording import open_recording

    header = rng.choice(("code,time,lastPrice,askPrice,other", "time,lastPrice", "Unnamed: 0,code,open,list,a"))
    rows = [header]
    for _ in range(rng.randrange(1, 30)):
        cells = [rng.choice((*CELLS, text(rng))) for _ in range(header.count(",") + rng.choice((1, 1, 1, 1, 2)))]
        if rng.random() < 0.7:
            cells[:2] = ["600519.SH", "1751338260000"]
        rows.append(rng.choice((",", ",", ";", "\t")).join(f'"{cell}"' if "," in cell else cell for cell in cells))
    encoding, errors = rng.choice((("utf-8", "surrogatepass"), ("utf-16", "surrogatepass"), ("gb18030", "replace")))
    content = "\n".join(rows).encode(encoding, errors)
    content = mutated(rng, content) if rng.random() < 0.5 else content
    if rng.random() < 0.3:
        content = gzip.compress(content)
        content = mutated(rng, content) if rng.random() < 0.5 else content
    path = folder / rng.choice(("ticks.csv", "600519.SH.csv", "ticks.csv.gz"))
    path.write_bytes(content)
    _each(lambda: _play(open_recording(path, 1)))


def settings(rng: random.Random, folder: Path) -> None:
    """Load settings, and a list of codes."""
    from qmt_bridge.commands.codes_file import codes_of
    from qmt_bridge.config import NAMES, load_config
    from qmt_bridge.wire.topics import quote_topic

    example = (ROOT / "deploy" / "qmt-bridge.toml").read_bytes().replace(b"\n# ", b"\n")
    odd = ("1", "-1", "1.5", "true", "''", "[]", "{}", "['a', 1]", "1e400", "9" * 5000, "0x" + "f" * 5000, "1979-05-27")
    lines = (f"{rng.choice((*NAMES, 'a.b', '[x]'))} = {rng.choice(odd)}\n" for _ in range(rng.randrange(6)))
    content = "".join(lines).encode() if rng.random() < 0.5 else mutated(rng, example)
    path = folder / "qmt.toml"
    path.write_bytes(mutated(rng, content) if rng.random() < 0.5 else content)
    codes = mutated(rng, b"code,name\n600519.SH,x\n000001.SZ;y\n# no\n")
    env = {f"QMT_BRIDGE_{rng.choice(NAMES).upper()}": text(rng)}
    _each(
        lambda: load_config(path, {}), lambda: load_config(None, env), lambda: codes_of(codes, "codes.csv", quote_topic)
    )


def keys(rng: random.Random, folder: Path) -> None:
    """Read files of keys, and find keys in what clients send."""
    from gateway.keys.presented_key import presented_key
    from gateway.keys.table import Table
    from qmt_bridge.curve.authenticator import Authenticator
    from qmt_bridge.curve.key_folder import load_curve, make_keys
    from qmt_bridge.keys.key import check_length, checked_accounts, checked_scopes, make_key, seconds_of, sha256
    from qmt_bridge.keys.key_file import note_used, read_keys, read_used

    name = {"name": "a", "sha256": sha256("k"), "scopes": ["market"]}
    good = json.dumps({"version": 1, "keys": [name, {**name, "name": "b", "sha256": "0" * 64}]}).encode()
    odd = json.dumps(
        {"version": value(rng), "keys": [{**name, rng.choice(("name", "scopes", "x")): value(rng)}]}
    ).encode()
    (folder / "keys.json").write_bytes(rng.choice((odd, mutated(rng, good))))
    (folder / "keys-used.json").write_bytes(mutated(rng, b'{"%b": 5}' % b"0" * 64))
    curve = folder / "curve"
    make_keys(curve)
    for path in rng.sample(sorted(curve.rglob("*.key*")), 3):
        path.write_bytes(mutated(rng, path.read_bytes()))
    key = rng.choice((make_key(), text(rng)))
    head = {rng.choice(("authorization", "x-api-key")): rng.choice((f"Bearer {key}", key, text(rng) * 50))}
    query = rng.choice((f"api_key={key}".encode("utf-8", "surrogatepass"), rng.randbytes(30)))
    _each(
        lambda: Table(read_keys(folder), key).find(presented_key(head, [f"key.{key}"], query) or ""),
        lambda: read_used(folder),
        lambda: note_used(folder, {sha256(key): 5}),
        lambda: load_curve(str(curve), "feeder"),
        lambda: load_curve(str(curve), "gateway"),
        lambda: _admit(Authenticator, str(curve)),
        lambda: check_length(key, simulated=False),
        lambda: checked_scopes(text(rng)),
        lambda: checked_accounts(text(rng)),
        lambda: seconds_of(text(rng)),
    )


def positions(rng: random.Random, folder: Path) -> None:
    """Read the position of a client, and write the next one."""
    from qmt_bridge.clients.bookmark import Bookmark, BookmarkFile

    path = folder / "cursor.json"
    good = b'{"server":"a","seq":5,"event":"00"}'
    path.write_bytes(rng.choice((mutated(rng, good), json.dumps(value(rng)).encode())))
    saved = BookmarkFile(path, "a")
    _each(saved.load, lambda: saved.reach(Bookmark(9), 0.0))


def journals(rng: random.Random, folder: Path) -> None:
    """Read a journal as `journal list`, `verify`, `export` and `backup` do, and go on with it as the feeder does."""
    from qmt_bridge.journal_file import Reader, journal_path, title, to_line, to_object, to_rows

    path = journal_path(folder, "sim")
    body = '{"type": "order", "account": "1", "seq": 1, "time": 1, "data": {}}'
    good = ["'1'", "1", f"CAST('{body}' AS BLOB)"]
    statements = ["CREATE TABLE lives (epoch INTEGER NOT NULL, newest INTEGER NOT NULL, numbers BLOB NOT NULL)"]
    for number in range(1, rng.randrange(2, 30)):
        cells = [cell if rng.random() < 0.9 else rng.choice(VALUES) for cell in (str(number), *good, str(number))]
        statements.append(
            f"INSERT OR IGNORE INTO event (seq, account, time_ms, body, number) VALUES ({', '.join(cells)})"
        )
    for table in ("account", "lives"):
        row = ("'1'", "5") if table == "account" else ("5", "0", "x'7b7d'")
        cells = [cell if rng.random() < 0.7 else rng.choice(VALUES) for cell in row]
        statements.append(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join(cells)})")
    if rng.random() < 0.2:
        statements.append(
            rng.choice(
                (
                    f"UPDATE sqlite_sequence SET seq = {rng.choice(VALUES)}",
                    "CREATE TRIGGER evil AFTER INSERT ON event BEGIN DELETE FROM event; END",
                    "CREATE VIEW evil AS SELECT * FROM event",
                    "DROP TABLE account",
                    "DROP INDEX event_account",
                    "ALTER TABLE event DROP COLUMN time_ms",
                    "CREATE INDEX evil ON event (hex(body))",
                )
            )
        )
    with suppress(sqlite3.Error):
        # The statements themselves may be refused.
        hostile.journal_of(path, *statements, version=rng.choice((2, 2, 2, 1, 0, 3, -1)))
    if rng.random() < 0.5:
        path.write_bytes(mutated(rng, path.read_bytes()))

    def read() -> None:
        with Reader(path) as reader:
            for use in (
                lambda: (title(reader), to_rows(reader), to_object(reader)),
                lambda: [*map(to_line, reader.rows())],
                lambda: [*reader.rows("1", 2, 5)],
                lambda: [*reader.faults()],
                lambda: reader.backup(folder / "copy.sqlite3"),
            ):
                _each(use)

    _each(read, lambda: _go_on(path), lambda: _go_on(path))


# Each reader by its name.
READERS: dict[str, Case] = {case.__name__: case for case in (tapes, csvs, settings, keys, positions, journals)}


class Refusals:
    """How many uses of readers were refused in this process, and how many were not."""

    refused = 0
    read = 0


def _each(*uses: Callable[[], object]) -> None:
    """Make each use; count refusals, and let anything else through."""
    from qmt_bridge.errors import QMTBridgeError

    for use in uses:
        try:
            use()
        except (QMTBridgeError, sqlite3.Error, BlockingIOError):
            Refusals.refused += 1
        else:
            Refusals.read += 1


class _Nowhere:
    """A sink that drops everything."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def _play(recording: Any) -> None:
    from qmt_bridge.wire.topics import Topic

    sink: Any = _Nowhere()
    wanted = {Topic("quote/600519.SH/tick/"), Topic("whole/SH/"), Topic("whole/600519.SH/")}
    with closing(recording.moments()) as moments:
        for _, moment in moments:
            recording.publish(moment, wanted, sink, 1)
    for topic in wanted:
        recording.publish_newest(topic, sink, 1)


def _admit(authenticator: Any, curve: str) -> None:
    import zmq

    with zmq.Context() as context:
        authenticator(context, curve).close()


def _go_on(path: Path) -> None:
    """Open a journal as the feeder does, read everything, and add an event, which must reach the disk."""
    from feeder.events import Unsent
    from feeder.journal.journal import Journal
    from qmt_bridge.wire import frames

    journal = Journal(path, days=30)
    try:
        journal.begin_epoch(5)
        for use in (lambda: journal.read(0), lambda: journal.read(0, "1"), lambda: journal.oldest("1"), _all(journal)):
            _each(use)
        while journal.prune(5):
            pass
        journal.append(journal.positions.give([Unsent("1", "order", frames.checked(b"{}"))], 5))
        journal.checkpoint(idle=True)
    finally:
        journal.close()


def _all(journal: Any) -> Callable[[], None]:
    def read() -> None:
        after = 0
        while events := journal.since(0, after):
            after = events[-1][0]

    return read


def cases(seed: int, seconds: float, only: str = "", number: int = 0) -> Iterator[tuple[str, int]]:
    """Yield readers in turn with the number of the case, until the time is over; or one case."""
    if only and number:
        yield only, number
        return
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        number += 1
        for name in (only,) if only else READERS:
            yield name, number


def run(seed: int, seconds: float, only: str, case: int, progress: Path) -> dict[str, Any]:
    """Read hostile files in this process; return counts and faults."""
    counts: Counter[str] = Counter()
    faults = []
    for name, number in cases(seed, seconds, only, case):
        progress.write_text(f"{name} {number}", encoding="ascii")
        folder = Path(tempfile.mkdtemp(prefix="qmt-bridge-fuzz-"))
        began = time.process_time()
        try:
            READERS[name](random.Random(f"{seed} {name} {number}"), folder)
        except Exception:
            faults.append(f"{name} {number}: {traceback.format_exc()}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if time.process_time() - began > LONGEST:
            faults.append(f"{name} {number}: took {time.process_time() - began:.0f} s")
        counts[name] += 1
        if len(faults) >= MOST_FAULTS:
            break
    return {"counts": counts, "refused": Refusals.refused, "read": Refusals.read, "faults": faults}


def fuzz_files(seed: int, seconds: float, only: str = "", case: int = 0) -> list[str]:
    """Read hostile files in a child for so many seconds, print how many, and return what is wrong."""
    with tempfile.TemporaryDirectory(prefix="qmt-bridge-fuzz-") as folder:
        progress = Path(folder, "progress")
        command = [sys.executable, "-m", "tests.fuzz.files", "--child", str(progress)]
        command += ["--seed", str(seed), "--seconds", str(seconds), "--only", only, "--case", str(case)]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=seconds + GRACE, check=False
            )
        except subprocess.TimeoutExpired:
            return [f"{progress.read_text(encoding='ascii')}: does not end"]
        if ended.returncode:
            at = progress.read_text(encoding="ascii") if progress.exists() else "before the first case"
            return [f"{at}: the reader ended with {ended.returncode}: {ended.stderr[-2000:]}"]
    found = json.loads(ended.stdout.splitlines()[-1])
    faults: list[str] = found["faults"]
    # What a reader logs with a traceback is a fault too.
    faults += [ended.stderr[-2000:]] if "Traceback" in ended.stderr else []
    counts = ", ".join(f"{count:,} {name}" for name, count in found["counts"].items())
    click.echo(f"hostile files, seed {seed}: {counts}; {found['refused']:,} uses refused, {found['read']:,} read")
    return faults


@click.command()
@click.option("--seconds", default=20.0)
@click.option("--seed", default=1)
@click.option("--only", default="", type=click.Choice(("", *READERS)))
@click.option("--case", default=0, help="With --only: this case alone.")
@click.option("--child", default="", hidden=True)
def main(seconds: float, seed: int, only: str, case: int, child: str) -> None:
    """Read hostile files; the exit code is 1 if a reader does anything but read or refuse."""
    if child:
        _limit()
        logging.basicConfig(level=logging.CRITICAL)
        click.echo(json.dumps(run(seed, seconds, only, case, Path(child))))
        return
    faults = fuzz_files(seed, seconds, only, case)
    for fault in faults:
        click.echo(fault, err=True)
    sys.exit(bool(faults))


def _limit() -> None:
    """Bound the address space of this process, after what it imports."""
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401

    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * os.sysconf("SC_PAGESIZE") + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (room, room))


if __name__ == "__main__":
    main()
