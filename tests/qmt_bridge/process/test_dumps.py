"""Dumps of native code: one crash after the other leaves one file, and no other file is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmt_bridge.process.dumps import keep_newest


def test_only_the_newest_dump_of_this_run_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written = {"20261129174114426.dmp": 50, "2026112994212819.dmp": 110, "20261129174441920.dmp": 130}
    others = {"mine.dmp": 120, "20261129174212819.dmp.txt": 120, "2026112917.dmp": 120}
    for name, seconds in (written | others).items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (seconds, seconds))
    keep_newest(tmp_path, since=100.0)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"20261129174114426.dmp", "20261129174441920.dmp", *others}
    assert "20261129174441920.dmp" in caplog.text


def test_a_folder_that_cannot_be_read_is_left(tmp_path: Path) -> None:
    keep_newest(tmp_path / "none", since=0.0)
