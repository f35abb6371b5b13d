"""Files and folders of ours are for their owner alone; those of others keep their modes, and a warning says so."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from feeder.journal.journal import Journal
from qmt_bridge import private
from qmt_bridge.clients.bookmark import Bookmark, BookmarkFile
from qmt_bridge.config import load_config
from qmt_bridge.curve.key_folder import load_curve, make_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.journal_file import journal_path
from qmt_bridge.keys.key_file import change_keys
from qmt_bridge.tapes.tape import Recorded, TapeWriter, session_frame
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")

AS_NOBODY = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> set[int]:
    return {mode(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def _generous(monkeypatch: pytest.MonkeyPatch):
    """Run with the mask of most systems, under which a new file can be read by all."""
    monkeypatch.setattr(private, "_told", set())
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """Return a folder that every user may enter, below folders that every user may pass."""
    folder = tmp_path / "common"
    folder.mkdir()
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/") and str(path) not in ("/tmp", "/var", "/private"):
            path.chmod(mode(path) | 0o755)
    return folder


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the user nobody; skip the test where that is not possible."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to become another user")
    return subprocess.run((*AS_NOBODY, *command), capture_output=True, text=True, timeout=30, check=False)


def test_every_folder_that_is_made_is_private(tmp_path: Path) -> None:
    private.make_folder(tmp_path / "a" / "b" / "c")
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/c")] == [0o700] * 3
    (tmp_path / "open").mkdir(mode=0o755)
    private.make_folder(tmp_path / "open")
    assert mode(tmp_path / "open") == 0o755
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        private.make_folder(tmp_path / "file")


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path) -> None:
    journal = Journal(journal_path(tmp_path / "data", "sim"), days=1)
    journal.begin_epoch(1)
    change_keys(tmp_path / "data", lambda keys: keys)
    make_keys(tmp_path / "curve")
    TapeWriter(tmp_path / "tapes" / "day.tape", Recorded(1, session_frame([], "1"))).close()
    (tmp_path / "state").mkdir()
    bookmark = BookmarkFile(tmp_path / "state" / "cursor.json", "a")
    bookmark.load()
    bookmark.reach(Bookmark(5), 0.0)
    folders = [tmp_path / name for name in ("data", "curve", "curve/clients", "tapes")]
    try:
        assert [mode(folder) for folder in folders] == [0o700] * 4
        assert modes(tmp_path / "data") == modes(tmp_path / "tapes") == modes(tmp_path / "state") == {0o600}
        assert {mode(path) for path in (tmp_path / "curve").glob("*.key_secret")} == {0o600}
    finally:
        journal.close()
    assert json.loads((tmp_path / "state" / "cursor.json").read_bytes())["seq"] == 5
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["cursor.json"]


def test_a_folder_of_an_earlier_version_is_restricted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = journal_path(tmp_path / "data", "sim")
    Journal(path, days=1).close()
    for name in (
        "journal-sim.sqlite3.damaged-1",
        "journal-xtquant.sqlite3",
        "keys.json",
        "keys-used.json",
        "keys.lock",
    ):
        (path.parent / name).write_bytes(b"")
    for found in path.parent.iterdir():
        found.chmod(0o644)
    path.parent.chmod(0o755)
    caplog.clear()
    Journal(path, days=1).close()
    assert (mode(path.parent), modes(path.parent)) == (0o700, {0o600})
    (said,) = caplog.messages
    assert "is now for its owner alone" in said
    assert "keys.json" in said
    assert str(path.parent) in said
    caplog.clear()
    Journal(path, days=1).close()
    assert caplog.messages == []


def test_a_folder_with_files_of_the_user_keeps_its_mode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = journal_path(tmp_path / "home", "sim")
    path.parent.mkdir()
    (path.parent / "diary.txt").write_bytes(b"")
    (path.parent / "keys.json").symlink_to("diary.txt")
    path.parent.chmod(0o755)
    for _ in range(2):
        Journal(path, days=1).close()
    assert (mode(path.parent), mode(path.parent / "diary.txt"), mode(path)) == (0o755, 0o644, 0o600)
    (said,) = caplog.messages
    assert "its mode stays, because it holds 'diary.txt'" in said


def test_a_folder_for_everybody_keeps_its_mode(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    private.keep_folder(folder)
    assert mode(folder) == 0o1777
    assert "because it is for everybody" in caplog.text


def run_feeder(data: Path) -> None:
    Journal(journal_path(data, "sim"), days=1).close()


def change(data: Path) -> None:
    change_keys(data, lambda keys: keys)


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("feeder.lock", run_feeder),
        ("journal-sim.sqlite3", run_feeder),
        ("keys.lock", change),
    ],
)
@pytest.mark.parametrize("exists", [True, False], ids=["there", "missing"])
def test_a_link_of_another_user_leads_nowhere(
    tmp_path: Path, name: str, use: Callable[[Path], None], exists: bool
) -> None:
    data, target = tmp_path / "data", tmp_path / "target"
    use(data)
    (data / name).unlink(missing_ok=True)
    (data / name).symlink_to(target)
    if exists:
        target.write_bytes(b"")
        target.chmod(0o644)
    if os.getuid() != 0:
        pytest.skip("only root can give a link to another user")
    os.lchown(data / name, 54321, 54321)
    with pytest.raises(ConfigError, match="is a link of the user 54321"):
        use(data)
    assert (target.exists(), exists and mode(target)) == (exists, exists and 0o644)
    # The user's own link may lead to another disk.
    os.lchown(data / name, 0, 0)
    use(data)


def test_a_folder_of_another_user_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a folder to another user")
    os.chown(tmp_path, 54321, 54321)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    for _ in range(2):
        private.keep_folder(tmp_path)
    assert caplog.messages == [
        f"{tmp_path} belongs to the user 54321, who can replace what is in it: use a folder of your own"
    ]


@pytest.mark.parametrize(("content", "warns"), [('api_key = "0123456789abcdef"\n', True), ("port = 8000\n", False)])
def test_settings_with_a_key_that_others_can_read_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, warns: bool
) -> None:
    path = tmp_path / "qmt.toml"
    path.write_text(content, encoding="utf-8")
    path.chmod(0o640)
    for _ in range(2):
        load_config(path, {})
    assert [f"chmod 600 {path}" in message for message in caplog.messages] == [True] * warns
    caplog.clear()
    private._told.clear()
    path.chmod(0o600)
    load_config(path, {})
    assert caplog.messages == []


def test_a_secret_key_that_others_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_keys(tmp_path)
    load_curve(str(tmp_path), "feeder")
    assert caplog.messages == []
    (tmp_path / "feeder.key_secret").chmod(0o644)
    load_curve(str(tmp_path), "feeder")
    assert f"chmod 600 {tmp_path / 'feeder.key_secret'}" in caplog.text


def test_a_tape_that_others_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "day.tape"
    TapeWriter(path, Recorded(1, session_frame([], "1"))).close()
    assert caplog.messages == []
    path.chmod(0o644)
    TapeWriter(path, Recorded(1, session_frame([], "1"))).close()
    assert (f"chmod 600 {path}" in caplog.text, mode(path)) == (True, 0o644)


LOCK = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDONLY)
# The bytes that SQLite locks to read.
fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 510, 0x40000002)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("foreign", [False, True], ids=["own-folder", "folder-of-the-user"])
def test_lock_of_another_user_does_not_stop_the_feeder(common: Path, foreign: bool) -> None:
    path = journal_path(common / "data", "sim")
    Journal(path, days=1).close()
    # As an earlier version, or a copy, has left it.
    path.with_name("feeder.lock").chmod(0o644)
    path.parent.chmod(0o755)
    if foreign:
        (path.parent / "diary.txt").write_bytes(b"")
    Journal(path, days=1).close()
    ended = as_nobody("/usr/bin/env", "python3", "-c", LOCK, str(path.with_name("feeder.lock")))
    assert (ended.returncode, "locked" in ended.stdout, "PermissionError" in ended.stderr) == (1, False, True)
    with closing(Journal(path, days=1)):
        pass


def test_read_lock_would_stop_the_feeder(common: Path) -> None:
    path = journal_path(common / "data", "sim")
    Journal(path, days=1).close()
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK, str(path.with_name("feeder.lock"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        # So the modes are what keeps another user from it.
        with pytest.raises(ConfigError, match=r"feeder\.lock is locked"):
            Journal(path, days=1)


def test_another_user_cannot_read_what_is_written(common: Path) -> None:
    path = journal_path(common / "data", "sim")
    with closing(Journal(path, days=1)):
        ended = as_nobody("ls", str(path.parent))
        assert ended.returncode != 0
        path.parent.chmod(0o755)
        assert as_nobody("ls", str(path.parent)).returncode == 0
        for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", "feeder.lock"):
            assert "Permission denied" in as_nobody("cat", str(path.with_name(name))).stderr


def test_command_keeps_new_files_of_libraries_from_others(tmp_path: Path) -> None:
    code = "from qmt_bridge.process.start import prepare; prepare(); open('made', 'w').close()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert mode(tmp_path / "made") == 0o600


def test_windows_is_told_to_restrict_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setenv("SYSTEMROOT", "/windows")
    monkeypatch.setattr(private.subprocess, "run", lambda command, **_: calls.append(command) or Done(0))
    monkeypatch.setattr(private.sys, "platform", "win32")
    private.make_folder(tmp_path / "a" / "b")
    assert calls == [
        [
            os.path.join("/windows", "System32", "icacls.exe"),
            str(tmp_path / "a"),
            *("/inheritance:r", "/grant:r"),
            *("*S-1-3-4:(OI)(CI)F", "*S-1-5-18:(OI)(CI)F", "*S-1-5-32-544:(OI)(CI)F"),
        ]
    ]
    private.make_folder(tmp_path / "a")
    assert len(calls) == 1


class Done:
    """What subprocess.run returns."""

    def __init__(self, returncode: int) -> None:
        self.returncode = returncode


@pytest.mark.parametrize("failure", [Done(5), FileNotFoundError("icacls.exe")])
def test_a_folder_that_cannot_be_restricted_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: object
) -> None:
    def run(*_: object, **__: object) -> object:
        if isinstance(failure, Exception):
            raise failure
        return failure

    monkeypatch.setattr(private.subprocess, "run", run)
    private.restrict(tmp_path)
    assert "stay those that it inherits" in caplog.text


def test_a_file_that_another_process_removes_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "keys.json.abc.part"
    monkeypatch.setattr(Path, "iterdir", lambda _: iter((gone,)))
    private.keep_folder(tmp_path)
    assert mode(tmp_path) == 0o700
