"""The findings as text and as JSON, and the exit code."""

from __future__ import annotations

import re
import subprocess

from qmt_bridge.commands.doctor import report
from qmt_bridge.commands.doctor.findings.finding import Finding
from tests.support.doctor import SECONDS, Machine


def test_a_warning_is_no_failure() -> None:
    warned = [Finding("a", "ok", "x"), Finding("b", "warn", "y", "z")]
    assert report.exit_code(warned) == 0
    assert report.exit_code([*warned, Finding("c", "fail", "x", "y")]) == 1


def test_a_line_has_level_check_result_and_advice() -> None:
    findings = [Finding("key", "warn", "none", "set one"), Finding("firewall", "ok", "fine")]
    assert report.to_text(findings) == "warn  key       none -> set one\nok    firewall  fine"


def test_text_says_the_same_as_json(machine: Machine) -> None:
    _, findings = machine.run()
    done = subprocess.run(
        machine.start,
        env=machine.env,
        capture_output=True,
        encoding="utf-8",
        timeout=SECONDS,
        check=True,
    )
    free = re.compile(r"[\d.]+ GiB")
    assert free.sub("", done.stdout) == free.sub("", report.to_text(list(findings.values())) + "\n")
