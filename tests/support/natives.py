"""What native code, or its stand-ins, answers to tests/windows/questions.py: in a process that a question may end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from tests.support.paths import ROOT

QUESTIONS = ROOT / "tests" / "windows" / "questions.py"
# What the natives of xtquant 250807.1.2 answer without a terminal, under Wine 8.
RECORDED = ROOT / "tests" / "data" / "natives.json"
# Of one process; of a single question three at the most.
SECONDS = 120.0


def ask(names: list[str], env: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the answer to each question, its seconds, and how long it kept other threads waiting."""
    found: dict[str, dict[str, Any]] = {}
    left = names
    while left:
        done = run(left, env)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found |= {line.pop("name"): line for line in lines if "answer" in line}
        unanswered = [name for name in left if name not in found]
        if unanswered:
            # The line of a question is written before it is asked.
            assert lines, done.stderr
            assert lines[-1] == {"name": unanswered[0]}, done.stderr
            found[unanswered[0]] = {"answer": {"ended": done.returncode}}
        left = unanswered[1:]
    return found


def recorded() -> dict[str, Any]:
    """Return the recorded answer to each question."""
    found: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return found


def run(names: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Ask questions in one process; a question that does not return is one that ends it with 124."""
    command = [sys.executable, str(QUESTIONS), *names]
    # Pipes: under Wine, Python ends at once where a standard stream is something else.
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUTF8": "1", **env},
    ) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            process.returncode = 124
    texts = (each.decode("utf-8", "replace") for each in (out, err))
    return subprocess.CompletedProcess(command, process.returncode, *texts)
