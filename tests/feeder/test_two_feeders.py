"""A second feeder beside a first one: two real processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ports import ANY_ADDRESSES
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS
ADDRESSES = ("market_addr", "ask_addr")
FREE = ANY_ADDRESSES


def command(data_dir: Path, addresses: dict[str, str]) -> list[str]:
    flags = [f"--{name.replace('_', '-')}={address}" for name, address in addresses.items()]
    arguments = ["feeder", "--source=sim", f"--data-dir={data_dir}", "--until-eof", *flags]
    return [sys.executable, "-m", "qmt_bridge.cli", *arguments]


def second(data_dir: Path, addresses: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(data_dir, addresses), input="", capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
    )


def refused_by(data_dir: Path, addresses: dict[str, str]) -> tuple[int, str]:
    """Return exit code and last words of a feeder that is not asked to end: Wine takes long to tell who has a port."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(data_dir, addresses), stdin=pipe, stderr=pipe, encoding="utf-8") as process:
        assert process.stderr is not None
        said = process.stderr.read()
        return process.wait(SECONDS), said


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Callable[[dict[str, str]], dict[str, str]]]:
    """Return a function that starts a feeder in the folder ``a`` and returns the addresses at which it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(addresses: dict[str, str]) -> dict[str, str]:
        process = subprocess.Popen(
            command(tmp_path / "a", addresses), stdin=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )
        started.append(process)
        assert process.stderr is not None
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            line = process.stderr.readline()
            assert line, "the first feeder ended"
            if "feeder started" in line:
                _, _, told = line.partition("market ")
                market, _, rest = told.strip().partition(", trade ")
                ask, _, _ = rest.partition(", ask ")[2].partition(", ask about ")
                return dict(zip(ADDRESSES, (market, ask), strict=True))
        raise AssertionError("the first feeder did not start in time")

    try:
        yield start
    finally:
        for process in started:
            process.communicate(timeout=SECONDS)
            assert process.returncode == 0


def test_a_second_feeder_on_the_same_folder_is_refused_by_name(
    first: Callable[[dict[str, str]], dict[str, str]], tmp_path: Path
) -> None:
    first(FREE)
    code, said = refused_by(tmp_path / "a", FREE)
    assert code == 1
    assert f"data_dir: another feeder has its trade journal in {tmp_path / 'a'}" in said
    assert "Traceback" not in said
    # A feeder with its own folder and addresses starts.
    assert second(tmp_path / "b", FREE).returncode == 0


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_second_feeder_on_the_same_address_is_refused_by_name(
    first: Callable[[dict[str, str]], dict[str, str]], tmp_path: Path, name: str
) -> None:
    taken = first(FREE)
    code, said = refused_by(tmp_path / "b", FREE | {name: taken[name]})
    assert code == 1
    assert f"{name}: cannot listen on {taken[name]}" in said
    assert "Traceback" not in said


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no such sockets here")
def test_a_used_ipc_address_is_refused_and_a_stale_one_is_taken(
    first: Callable[[dict[str, str]], dict[str, str]], tmp_path: Path
) -> None:
    # The name is short: the path of such a socket has at most about a hundred characters.
    address = f"ipc://{tmp_path}/m"
    if len(address) > 100:
        pytest.skip("the folder's name is too long for a socket")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/m")
    first(FREE | {"market_addr": address})
    code, said = refused_by(tmp_path / "b", FREE | {"market_addr": address})
    assert code == 1
    assert f"market_addr: cannot listen on {address}: address already in use" in said
