"""The package of docs/sources.md, installed into a folder as an installer does it: modules beside their dist-info."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.support.documents import blocks


def program() -> str:
    """Return the whole source of the document."""
    (found,) = [
        each.text
        for each in blocks("docs/sources.md")
        if each.section == "A whole one" and "Demo" in each.text and each.language == "python"
    ]
    return found


def install(
    folder: Path, text: str | None = None, *, package: str = "demo-feed", entry: str = "demo = demo_feed:Demo"
) -> Path:
    """Install a package with one module, that of the document if no `text` is given; return the folder."""
    module = package.replace("-", "_")
    information = folder / f"{module}-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / f"{module}.py").write_text(program() if text is None else text, encoding="utf-8")
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(f"[qmt_bridge.sources]\n{entry}\n", encoding="utf-8")
    return folder


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process find what is installed in a folder."""
    # Not syspath_prepend, which imports pkg_resources: another package of the tests may have put its own in its place.
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    importlib.invalidate_caches()
