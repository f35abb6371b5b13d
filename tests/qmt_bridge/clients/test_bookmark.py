"""The saved position: what is written when, and what a file must hold. Time is an argument."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from qmt_bridge.clients import bookmark as bookmark_module
from qmt_bridge.clients.bookmark import SAVE_SECONDS, Bookmark, BookmarkFile, fingerprint
from qmt_bridge.errors import ConfigError
from tests.support.full_disk import full_disk

SERVER = "gateway:8000"
EVENT = {"type": "order", "seq": 7, "data": {"order_id": 1, "price": 10.5}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def on_disk(path: Path) -> Bookmark | None:
    return BookmarkFile(path, SERVER).load()


def test_what_is_written_is_read_again(path):
    assert on_disk(path) is None
    reached = Bookmark(7, fingerprint(EVENT))
    BookmarkFile(str(path), SERVER).reach(reached, 0.0)
    assert on_disk(path) == reached
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_writes_are_a_second_apart_and_the_last_position_is_due(path):
    saved = BookmarkFile(path, SERVER)
    assert saved.due is None
    for seq in range(1, 5):
        saved.reach(Bookmark(seq), 100.0 + seq / 10)
    assert on_disk(path) == Bookmark(1)
    assert saved.due == 100.1 + SAVE_SECONDS
    saved.save(saved.due)
    assert on_disk(path) == Bookmark(4)
    assert saved.due is None
    saved.reach(Bookmark(5), 200.0)
    assert on_disk(path) == Bookmark(5)


def test_a_position_that_is_on_disk_is_not_written_again(path):
    BookmarkFile(path, SERVER).reach(Bookmark(7), 0.0)
    saved = BookmarkFile(path, SERVER)
    reached = saved.load()
    path.unlink()
    saved.reach(reached, 0.0)
    saved.save(10.0)
    assert not path.exists()


def test_a_crash_while_writing_leaves_the_older_position(path, monkeypatch):
    BookmarkFile(path, SERVER).reach(Bookmark(7), 0.0)

    def crash(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(bookmark_module.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        BookmarkFile(path, SERVER).reach(Bookmark(8), 0.0)
    assert on_disk(path) == Bookmark(7)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b'{"server": "gateway:8000", "se', id="half"),
        pytest.param(b'{"server": "gateway:8000"}', id="without-seq"),
        pytest.param(b'{"server": "gateway:8000", "seq": -1}', id="negative"),
        pytest.param(b'{"server": "gateway:8000", "seq": 9223372036854775808}', id="too-large"),
        pytest.param(b'{"server": "gateway:8000", "seq": "7"}', id="text"),
        pytest.param(b'{"server": "gateway:8000", "seq": 7, "more": 1}', id="of-a-later-version"),
        pytest.param(b'{"server": "\xff", "seq": 7}', id="not-utf-8"),
        pytest.param(b"[7]", id="not-an-object"),
    ],
)
def test_a_file_that_holds_no_position_is_an_error_and_stays(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"state: .*state.json' holds no position"):
        on_disk(path)
    assert path.read_bytes() == content


def test_a_file_of_another_gateway_is_an_error(path):
    BookmarkFile(path, "other:8000").reach(Bookmark(7), 0.0)
    with pytest.raises(ConfigError, match="holds a position at other:8000, which is not one at gateway:8000"):
        on_disk(path)


def test_a_folder_or_none_is_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="state: there is no folder"):
        on_disk(tmp_path / "nowhere" / "state.json")
    with pytest.raises(ConfigError, match="state: cannot read"):
        on_disk(tmp_path)


def test_a_first_write_that_fails_is_an_error(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    saved = BookmarkFile(folder / "state.json", SERVER)
    assert saved.load() is None
    folder.rmdir()
    with pytest.raises(ConfigError, match="state: cannot write"):
        saved.reach(Bookmark(7), 0.0)
    saved.save(1.0)


def test_a_later_write_that_fails_is_logged_once_and_tried_again(path, caplog):
    caplog.set_level(logging.INFO)
    saved = BookmarkFile(path, SERVER)
    saved.reach(Bookmark(1), 0.0)
    with full_disk():
        for now in (10.0, 20.0):
            saved.reach(Bookmark(int(now)), now)
            assert saved.due == now + SAVE_SECONDS
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert on_disk(path) == Bookmark(1)
    saved.save(30.0)
    assert on_disk(path) == Bookmark(20)
    assert saved.due is None
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    with full_disk():
        saved.reach(Bookmark(40), 40.0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "ERROR"], "another episode"


def test_the_content_is_on_disk_before_the_name_is(path, monkeypatch):
    steps = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(bookmark_module.os, "fsync", lambda descriptor: steps.append("sync") or fsync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda self, target: steps.append("replace") or replace(self, target))
    BookmarkFile(path, SERVER).reach(Bookmark(1), 0.0)
    assert steps == (["sync", "replace"] if os.name == "nt" else ["sync", "replace", "sync"])


def test_a_fingerprint_is_of_what_was_traded_and_does_not_show_it(path):
    same = {"data": {"order_id": 1, "price": 10.5}, "seq": 8, "type": "order", "journaled": False}
    assert fingerprint(EVENT) == fingerprint(same)
    for other in (EVENT | {"type": "trade"}, EVENT | {"data": {"order_id": 2, "price": 10.5}}):
        assert fingerprint(EVENT) != fingerprint(other)
    BookmarkFile(path, SERVER).reach(Bookmark(7, fingerprint(EVENT)), 0.0)
    assert json.loads(path.read_bytes()) == {"server": SERVER, "seq": 7, "event": fingerprint(EVENT)}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_the_owner_may_read_a_position(path):
    path.write_bytes(b"")
    path.chmod(0o644)
    saved = BookmarkFile(path, "here:8000")
    saved.reach(Bookmark(1), 0.0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
