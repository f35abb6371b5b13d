"""`qmt-bridge doctor` on a machine of the test: its settings, free ports, and the findings."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qmt_bridge.commands.doctor.findings.finding import Finding
from tests.support.ports import UP, address_env, free_ports, tcp
from tests.support.waiting import SLOWNESS

SECONDS = 30.0 * SLOWNESS
KEY = "0123456789abcdef"
TOKEN = "7b1e-t0ken"
# The command, with a shorter wait for an address without an answer.
QUICK = """
from qmt_bridge import handshakes
handshakes.PATIENCE_SECONDS = 0.3
from qmt_bridge.__main__ import main
main()
"""


class Machine:
    """The settings of a machine with free ports and a folder of its own; `run` returns the findings."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.port, *wire = free_ports(1 + len(UP))
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("QMT_BRIDGE_")}
        self.env |= {"QMT_BRIDGE_PORT": str(self.port), "QMT_BRIDGE_DATA_DIR": str(folder / "data")}
        self.env |= {"QMT_BRIDGE_API_KEY": KEY}
        self.env |= address_env(dict(zip(UP, map(tcp, wire), strict=True)))
        self.env |= env
        self.printed = ""
        # Whether a program listens at these addresses: then the command waits as long as it does for a user.
        self.answers = False

    @property
    def start(self) -> list[str]:
        """Return the command without its arguments."""
        return [sys.executable, *(("-m", "qmt_bridge.cli") if self.answers else ("-c", QUICK)), "doctor"]

    def run(self, *arguments: str) -> tuple[int, dict[str, Finding]]:
        """Run the command with --json; return its exit code and the findings by check."""
        done = subprocess.run(
            [*self.start, "--json", *arguments],
            env=self.env,
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=False,
        )
        assert done.stderr == ""
        self.printed = done.stdout
        said = json.loads(done.stdout)
        assert said["ok"] == (done.returncode == 0)
        return done.returncode, {item["check"]: Finding(**item) for item in said["checks"]}


def levels(findings: dict[str, Finding], level: str) -> list[str]:
    return [check for check, finding in findings.items() if finding.level == level]


@contextmanager
def listener() -> Iterator[int]:
    """Listen on a free port and never answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def assert_finding(finding: Finding, level: str, said: str) -> None:
    """Assert the level and a part of the text; what is not ok has an advice, and each text is one line."""
    assert finding.level == level
    assert said in finding.said
    # A finding that is not ok has an advice; each one fits one line.
    assert bool(finding.advice) == (level != "ok") or finding.said.endswith("cannot be heard from here")
    assert "\n" not in finding.said + finding.advice
