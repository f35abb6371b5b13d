"""The file of the keys: whole, for its owner alone, and never half changed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import MOST_KEYS, Key, make_key, sha256
from qmt_bridge.keys.key_file import MOST_BYTES, change_keys, keys_path, note_used, read_keys, read_used, stamp

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has access lists")


def made(name: str) -> Key:
    return Key(name=name, sha256=sha256(name), scopes=("market", "trade"), accounts=("1000000365",), expires=7)


def test_keys_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    assert read_keys(folder) == ()
    change_keys(folder, lambda keys: [*keys, made("a")])
    change_keys(folder, lambda keys: [*keys, made("b")])
    assert read_keys(folder) == (made("a"), made("b"))


@POSIX
def test_file_and_folder_are_for_their_owner_alone(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    old = os.umask(0)
    try:
        for folder in (open_folder, tmp_path / "new"):
            change_keys(folder, lambda keys: [made("a")])
            note_used(folder, {made("a").sha256: 5})
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    finally:
        os.umask(old)


@POSIX
def test_keys_of_another_user_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_keys(tmp_path, lambda keys: [made("a")])
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    # Of root, or of this user.
    for owner in (0, 12345):
        os.chown(keys_path(tmp_path), owner, owner)
        assert read_keys(tmp_path) == (made("a"),)
    os.chown(keys_path(tmp_path), 54321, 54321)
    with pytest.raises(ConfigError, match=r"keys\.json: belongs to the user 54321, who could give any rights"):
        read_keys(tmp_path)


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    change_keys(tmp_path, lambda keys: [made("a")])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(_: object) -> list[Key]:
        raise ConfigError("NAME", "no")

    with pytest.raises(ConfigError):
        change_keys(tmp_path, fail)
    with pytest.raises(ConfigError, match=str(MOST_KEYS)):
        change_keys(tmp_path, lambda keys: [made(f"k{number}") for number in range(MOST_KEYS + 1)])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_changes_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from qmt_bridge.keys.key_file import change_keys\n"
        "from qmt_bridge.keys.key import Key, sha256\n"
        "for n in range(10):\n"
        "    k = Key(name=f'{sys.argv[2]}-{n}', sha256=sha256(f'{sys.argv[2]}-{n}'), scopes=('market',))\n"
        "    change_keys(Path(sys.argv[1]), lambda keys: [*keys, k])\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"p{number}"]) for number in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert {key.name for key in read_keys(tmp_path)} == {f"p{p}-{n}" for p in range(4) for n in range(10)}


def test_use_is_noted_of_known_keys_and_only_later(tmp_path: Path) -> None:
    change_keys(tmp_path, lambda keys: [made("a"), made("b")])
    a, b = made("a").sha256, made("b").sha256
    note_used(tmp_path, {a: 100, "0" * 64: 100})
    note_used(tmp_path, {a: 50, b: 70})
    assert read_used(tmp_path) == {a: 100, b: 70}
    change_keys(tmp_path, lambda keys: [made("b")])
    note_used(tmp_path, {})
    assert read_used(tmp_path) == {b: 70}


def test_stamp_changes_with_each_replacement(tmp_path: Path) -> None:
    seen = {stamp(tmp_path)}
    for number in range(5):
        change_keys(tmp_path, lambda keys, number=number: [made(f"k{number}")])  # type: ignore[misc]
        seen.add(stamp(tmp_path))
    assert len(seen) >= 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"version": 2, "keys": []}',
        b'{"version": 1, "keys": [{"name": "a"}]}',
        b'{"version": 1, "keys": [{"name": "a", "sha256": "00", "scopes": ["market"]}]}',
        b'{"version": 1, "keys": [{"name": "a", "sha256": "%s", "scopes": ["root"]}]}' % (b"0" * 64),
        b'{"version": 1, "keys": [{"name": "a", "sha256": "%s", "scopes": []}]}' % (b"0" * 64),
        b'{"version": 1, "keys": [{"name": "a\\n", "sha256": "%s", "scopes": ["market"]}]}' % (b"0" * 64),
        b'{"version": 1, "keys": [], "more": 1}',
        b"\xff\xfe\x00",
        b" " * (MOST_BYTES + 1),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    keys_path(tmp_path).write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        read_keys(tmp_path)


def test_a_key_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    change_keys(tmp_path, lambda keys: [made("a"), made("a")])
    with pytest.raises(ConfigError, match="names a key twice"):
        read_keys(tmp_path)


@POSIX
def test_a_pipe_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(keys_path(tmp_path))
    with pytest.raises(ConfigError, match="is not a regular file"):
        read_keys(tmp_path)


def test_a_made_key_has_256_bits_and_the_prefix() -> None:
    keys = {make_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("qmtb_") and len(key) == 5 + 43 for key in keys)
