"""`qmt-bridge key`: what it prints, what it keeps, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qmt_bridge.cli import main
from qmt_bridge.keys.key import sha256
from qmt_bridge.keys.key_file import note_used, read_keys


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["key", *arguments, "--data-dir", str(folder)])


def test_added_key_is_the_last_line_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    done = run(tmp_path, "add", "desk", "--scopes", "trade,market", "--accounts", "1000000365,2", "--expires", "30d")
    assert done.exit_code == 0, done.output
    secret = done.stdout.splitlines()[-1]
    [key] = read_keys(tmp_path)
    assert secret.startswith("qmtb_")
    assert (key.name, key.sha256, key.scopes) == ("desk", sha256(secret), ("market", "trade"))
    assert (key.accounts, key.expires - key.made) == (("1000000365", "2"), 30 * 86400)
    assert done.output.count(secret) == 1
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_limits_are_kept(tmp_path: Path) -> None:
    run(tmp_path, "add", "a", "--scopes", "market", "--connections", "2", "--codes", "10", "--rate", "5")
    [key] = read_keys(tmp_path)
    assert (key.connections, key.codes, key.rate, key.expires) == (2, 10, 5, 0)


def test_list_shows_rights_and_use_but_no_key(tmp_path: Path) -> None:
    secret = run(tmp_path, "add", "a", "--scopes", "market", "--accounts", "1000000365").stdout.splitlines()[-1]
    run(tmp_path, "add", "b", "--scopes", "trade,admin", "--expires", "12h")
    note_used(tmp_path, {sha256(secret): 1_700_000_000})
    shown = run(tmp_path, "list").stdout
    first, second = shown.splitlines()
    assert first.startswith("a  market  accounts ******0365")
    assert "last used 2023-11-1" in first
    assert second.startswith("b  trade,admin")
    assert "not used yet" in second
    assert secret not in shown
    assert sha256(secret) not in shown


def test_revoked_key_is_gone_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "add", "a", "--scopes", "market")
    run(tmp_path, "add", "b", "--scopes", "market")
    assert run(tmp_path, "revoke", "a").exit_code == 0
    assert [key.name for key in read_keys(tmp_path)] == ["b"]
    for command in ("revoke", "rotate"):
        refused = run(tmp_path, command, "a")
        assert refused.exit_code != 0
        assert "there is no key 'a'" in refused.output
    assert run(tmp_path / "empty", "revoke", "a").exit_code != 0


def test_rotated_key_keeps_its_rights(tmp_path: Path) -> None:
    old = run(tmp_path, "add", "a", "--scopes", "trade", "--accounts", "7", "--expires", "1w").stdout.splitlines()[-1]
    [before] = read_keys(tmp_path)
    new = run(tmp_path, "rotate", "a").stdout.splitlines()[-1]
    [after] = read_keys(tmp_path)
    assert new != old
    assert after.sha256 == sha256(new)
    assert (after.scopes, after.accounts, after.expires) == (before.scopes, before.accounts, before.expires)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "a", "--scopes", "root"), "expected some of market,l2,formula,download,trade,admin, got 'root'"),
        (("add", "a", "--scopes", ","), "got none"),
        (("add", "a"), "--scopes"),
        (("add", "a b", "--scopes", "market"), "expected up to 64 of the characters"),
        (("add", "x" * 65, "--scopes", "market"), "expected up to 64 of the characters"),
        (("add", "api_key", "--scopes", "market"), "choose another name"),
        (("add", "a", "--scopes", "trade", "--accounts", "1:STOCK"), "account numbers without a type"),
        (("add", "a", "--scopes", "market", "--expires", "soon"), "expected a duration such as 30d"),
        (("add", "a", "--scopes", "market", "--expires", "0d"), "expected a duration such as 30d"),
        (("add", "a", "--scopes", "market", "--expires", "9999999999w"), "expected a duration such as 30d"),
        (("add", "a", "--scopes", "market", "--rate", "0"), "--rate"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    refused = run(tmp_path, *arguments)
    assert refused.exit_code != 0
    assert said in refused.output
    assert read_keys(tmp_path) == ()


def test_a_second_key_of_the_same_name_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "add", "a", "--scopes", "market")
    assert "there is a key a already" in run(tmp_path, "add", "a", "--scopes", "market").output


def test_two_commands_at_once_lose_nothing(tmp_path: Path) -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "qmt_bridge.cli", "key", "add", f"k{number}", "--scopes", "market"],
            env={**os.environ, "QMT_BRIDGE_DATA_DIR": str(tmp_path)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(6)
    ]
    assert [process.wait(60) for process in running] == [0] * 6
    assert {key.name for key in read_keys(tmp_path)} == {f"k{number}" for number in range(6)}
