"""A child process with a bounded address space and bounded processor time, for readers of hostile files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.support.paths import ROOT

MIB = 1024 * 1024
# Bytes of address space beyond what the imports take.
ROOM = 320 * MIB
# Seconds of processor time, far more than a bounded reader takes: without the bound some take a minute, others an hour.
SECONDS = 20

_START = """
import resource, sys
with open("/proc/self/statm") as statm:
    pages = int(statm.read().split()[0])
room = pages * resource.getpagesize() + int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_AS, (room, room))
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv.pop(1)),) * 2)
"""


class Ended(NamedTuple):
    """What a child left: its exit code, negative for a signal, and what it wrote to both outputs."""

    code: int
    output: str


def run_limited(imports: str, code: str, *arguments: str | Path, room: int = ROOM, seconds: int = SECONDS) -> Ended:
    """Run `imports`, then `code` within the limits; `sys.argv[1:]` is `arguments`."""
    command = [sys.executable, "-c", f"{imports}\n{_START}\n{code}", str(room), str(seconds), *map(str, arguments)]
    # Arenas of other threads and a pool of kept memory take address space that nobody uses.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False
    )
    return Ended(ended.returncode, ended.stdout.decode("utf-8", "replace"))
