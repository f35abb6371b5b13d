"""The fuzz of hostile files: a short run finds nothing, and what a reader must not do is found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import files


def test_a_short_run_over_hostile_files_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert files.fuzz_files(7, 3.0) == []
    said = capsys.readouterr().out
    assert all(name in said for name in files.READERS)


def test_a_traceback_of_a_reader_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(rng: random.Random, folder: Path) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(files, "READERS", {"fails": fails})
    found = files.run(1, 0.0, "fails", 3, tmp_path / "progress")
    (fault,) = found["faults"]
    assert fault.startswith("fails 3: Traceback")
    assert (tmp_path / "progress").read_text(encoding="ascii") == "fails 3"


def test_a_case_is_repeated_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(files, "READERS", {"notes": lambda rng, folder: seen.append(rng.random())})
    for _ in range(2):
        files.run(5, 0.0, "notes", 9, tmp_path / "progress")
    files.run(5, 0.0, "notes", 10, tmp_path / "progress")
    assert seen[0] == seen[1] != seen[2]
