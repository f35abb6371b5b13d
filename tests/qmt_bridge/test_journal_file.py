"""The journal's file as other programs read it."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath

import pytest

from qmt_bridge.journal_file import read_only


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PurePosixPath("/srv/行情 数据/j?.db"), "file:///srv/%E8%A1%8C%E6%83%85%20%E6%95%B0%E6%8D%AE/j%3F.db?mode=ro"),
        (PureWindowsPath(r"D:\data dir\j#1.db"), "file:///D:/data%20dir/j%231.db?mode=ro"),
        (PureWindowsPath(r"\\server\share\j.db"), "file:////server/share/j.db?mode=ro"),
    ],
)
def test_a_path_on_any_drive_or_share_can_be_read(path: PurePosixPath | PureWindowsPath, uri: str) -> None:
    assert read_only(path) == uri
