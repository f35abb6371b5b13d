"""The strategy of the full terminal: run in a stand-in of the terminal, and read as a module."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.programs import Running

STRATEGY = ROOT / "deploy" / "bigqmt" / "qmt_bridge_push.py"
TERMINAL = ROOT / "tests" / "support" / "full_terminal.py"
ACCOUNT = "1000000365"


def python36() -> str:
    """Return CPython 3.6, which the terminal has; skip the test where there is none."""
    # pyenv puts a program of the name python3.6 on the path that fails while no version of it is chosen.
    found = next(map(str, sorted(Path.home().glob(".pyenv/versions/3.6.*/bin/python"))), shutil.which("python3.6"))
    if found is None:
        pytest.skip("CPython 3.6 is not installed; tests/bigqmt/test_file.py checks the syntax")
    return found


def strategy(**settings: object) -> str:
    """Return the text of the strategy with some of its settings changed."""
    text = STRATEGY.read_text("utf-8")
    for name, value in settings.items():
        text, changed = re.subn(rf"(?m)^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", text)  # type: ignore[misc]
        assert changed == 1, name
    return text


def loaded(text: str | None = None) -> ModuleType:
    """Return the strategy as a module of this Python."""
    module = ModuleType("strategy")
    exec(compile(text or strategy(), "qmt_bridge_push.py", "exec"), module.__dict__)
    return module


class Terminal:
    """A process of the stand-in that runs the strategy against a feeder at `port`."""

    def __init__(
        self, start: Callable[..., Running], folder: Path, port: int, *flags: str, python: str = "", **settings: object
    ) -> None:
        path = folder / "strategy.py"
        path.write_bytes(strategy(PORT=port, **settings).encode("gbk"))
        # For Windows there is no 3.6 here. There it is the system's sockets that the strategy has to get along with.
        self._command = [
            python or (sys.executable if sys.platform == "win32" else python36()),
            str(TERMINAL),
            str(path),
            "--broker",
            str(folder / "broker.json"),
            *flags,
        ]
        self._start = start
        self.running = self._run()

    def _run(self) -> Running:
        running = self._start(self._command, env={"PYTHONIOENCODING": "utf-8"})
        running.wait_for('"started"')
        return running

    def kill(self) -> None:
        """End the process at once."""
        self.running.process.kill()
        self.running.process.wait()

    def again(self) -> None:
        """Start the process anew, as the terminal does each morning; the broker's file is the same."""
        self.running = self._run()

    def tell(self, *commands: str) -> None:
        """Give commands, and wait until the last one is done."""
        before = len(self.answers("done"))
        for command in commands:
            self.running.say(json.dumps(command))
        self.running.wait_until(lambda _: len(self.answers("done")) >= before + len(commands))

    def answers(self, name: str) -> list[dict[str, Any]]:
        """Return what the stand-in has said under a name."""
        lines = [json.loads(line[2:]) for line in self.running.lines if line.startswith("# ")]
        return [line for line in lines if line["said"] == name]

    def check(self) -> None:
        """Fail if the strategy raised, called the terminal on a thread of its own, or used what is rolled back."""
        for name in ("raised", "foreign_thread", "stored"):
            assert not self.answers(name), self.answers(name)
