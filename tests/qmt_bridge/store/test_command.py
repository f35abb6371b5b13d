"""`qmt-bridge store` where the store cannot run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qmt_bridge.commands.run import store


def test_library_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # None makes the import system raise ImportError.
    monkeypatch.setitem(sys.modules, "qmt_bridge.store.app", None)
    monkeypatch.delattr("qmt_bridge.store.app", raising=False)
    ended = CliRunner().invoke(store, ["--data-dir", str(tmp_path)])
    assert ended.exit_code == 1
    assert "store_days" in ended.output
    assert "0 leaves the store out" in ended.output
    assert "Traceback" not in ended.output
