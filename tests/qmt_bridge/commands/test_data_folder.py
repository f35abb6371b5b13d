"""The data folder where users have it: Chinese and spaces in its name, another drive than the program's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.support.up import START, receive, running
from tests.support.waiting import SLOWNESS

NAME = "国金QMT 交易端　行情（甲）"


def run(*arguments: str) -> str:
    ended = subprocess.run([*START, *arguments], capture_output=True, timeout=60 * SLOWNESS, check=False)
    said = (ended.stdout + ended.stderr).decode("utf-8", "replace")
    assert ended.returncode == 0, said
    return said


windows = pytest.mark.skipif(os.name != "nt", reason="only Windows has drives")


@pytest.fixture(params=["here", pytest.param("another-drive", marks=windows)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a folder beside the test's, or on a drive of its own."""
    if request.param == "here":
        yield tmp_path / NAME
        return
    assert sys.platform == "win32"
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    letter = next(letter for letter in "QRSTUVW" if not Path(f"{letter}:\\").exists())
    drive = tmp_path / "drive"
    drive.mkdir()
    if not kernel.DefineDosDeviceW(0, f"{letter}:", str(drive)):
        # There temporary folders are on C: and the program is on Z:, so the other case has two drives as well.
        pytest.skip(f"Wine 8 defines no drive: {ctypes.WinError(ctypes.get_last_error())}")
    yield Path(f"{letter}:\\") / NAME
    # DDD_REMOVE_DEFINITION
    assert kernel.DefineDosDeviceW(2, f"{letter}:", None)


@pytest.mark.timeout(120)
async def test_a_data_folder_of_any_name_serves_and_is_read(folder: Path, tmp_path: Path) -> None:
    settings = tmp_path / "设置 1.toml"
    settings.write_text(f"data_dir = '{folder}'\nsim_order_interval = 0.01\n", encoding="utf-8-sig")
    with running(folder, "--source=sim", "--config", str(settings)) as up:
        async with connect(up.trade_url, proxy=None) as client:
            assert (await receive(client))["seq"] >= 1
        assert '"seq":' in run("tail", "trade/", "-n", "1", "--config", str(settings))
    assert "nothing is missing" in run("journal", "verify", f"--data-dir={folder}")
    copy = tmp_path / "备份 1.sqlite3"
    run("journal", "backup", str(copy), f"--data-dir={folder}")
    assert "nothing is missing" in run("journal", "verify", f"--file={copy}")
    run("key", "add", "desk", "--scopes=market", f"--data-dir={folder}")
    assert "desk" in run("key", "list", f"--data-dir={folder}")
    assert (folder / "keys.json").exists()
