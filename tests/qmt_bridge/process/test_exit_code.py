"""What the exit code of a process says, and which ones are worth another start."""

from __future__ import annotations

import sys

import pytest

from qmt_bridge.process.exit_code import describe, may_pass


@pytest.mark.parametrize(
    ("code", "passes"),
    [(0, False), (1, False), (2, False), (75, True), (-6, True), (0xC0000005, True), (0x40010004, False)],
)
def test_exit_code_decides_whether_a_part_is_started_again(code: int, passes: bool) -> None:
    assert may_pass(code) is passes


@pytest.mark.parametrize("system", ["win32", "linux"])
def test_abort_of_native_code_is_a_crash_on_windows_alone(monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert may_pass(3) is (system == "win32")
    assert describe(3) == ("exit code 3 (abort of native code)" if system == "win32" else "exit code 3")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "exit code 1"),
        (-9, "exit code -9"),
        (0xC0000005, "exit code 0xC0000005 (access violation)"),
        (0xC0001234, "exit code 0xC0001234"),
    ],
)
def test_native_crash_of_windows_is_told_in_words(code: int, text: str) -> None:
    assert describe(code) == text
