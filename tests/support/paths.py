"""Folders that tests read: the project, its stand-ins for xtquant, and the data beside the project."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
FAKES = ROOT / "tests" / "fakes"
# A tape and a journal that version 1 of the wire has left, and what is in them.
EARLIER = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"
RECORDED = DATA / "ticks"
