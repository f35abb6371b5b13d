"""Programs that a test runs: tools that check a file, and processes whose output the test waits for."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from qmt_bridge import cli
from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS


def needs(tool: str) -> str:
    """Return the path of a tool, of this venv first; skip the test if it is not installed."""
    found = shutil.which(
        tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    )
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def check(command: list[str], **options: Any) -> str:
    """Run a tool, which has to succeed; return its output."""
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=DEADLINE, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def accept(arguments: list[str], *, named: bool = False) -> dict[str, Any]:
    """Return the parameters of `qmt-bridge` with these arguments, without running it; fail at an unknown one.

    With `named` the arguments that a command needs may be missing, as where a text names it.
    """
    command: click.Command = cli.main
    rest = arguments
    # A group may be a command of its own too.
    while isinstance(command, click.Group) and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    if command is cli.main:
        pytest.fail(f"qmt-bridge {shlex.join(arguments)}: there is no such command")
    try:
        return command.make_context(command.name, list(rest)).params
    except click.UsageError as exc:
        if named and not rest and isinstance(exc, click.MissingParameter):
            return {}
        pytest.fail(f"qmt-bridge {shlex.join(arguments)}: {exc.format_message()}")


class Running:
    """A process; a test can wait for a line of its output."""

    def __init__(
        self,
        command: list[str],
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            cwd=cwd,
            pass_fds=pass_fds,
        )
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait_for(self, pattern: str) -> str:
        """Return the first line that contains `pattern`; fail if the process ends without one."""

        def found() -> str | None:
            return next((line for line in self.lines if re.search(pattern, line)), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, DEADLINE)
            line = found()
        assert line is not None, f"no line with {pattern!r}:\n{''.join(self.lines)}"
        return line

    def wait_until(self, condition: Callable[[list[str]], object]) -> None:
        """Wait until a condition holds for the lines; fail if the process ends before, or at the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self.lines) or self._ended, DEADLINE)
            assert condition(self.lines), "".join(self.lines)

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def programs() -> Iterator[Callable[..., Running]]:
    """Yield a function that starts processes; they end at the end, the last one first."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Running:
            running = Running(*arguments, **options)
            stack.callback(running.close)
            return running

        yield start
