"""The resources of a run's processes: memory, descriptors, threads, tasks, subscriptions. Linux only (/proc)."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import orjson

from qmt_bridge.wire.messages import FeedStatus
from tests.chaos.world import Part

# Seconds after which the memory of a process is compared: caches and the interpreter's pools fill first.
WARM_SECONDS = 180.0
# The memory at the beginning and at the end is the median over so many seconds.
_END_SECONDS = 60.0


class Holding(NamedTuple):
    """Resources of a process that must return to their first values; it reports clients, topics and tasks itself."""

    descriptors: int
    threads: int
    clients: int
    topics: int
    tasks: int


class ProcessMemory(NamedTuple):
    """The memory of one process in MB, after the first minutes and at its end, and the seconds in between."""

    name: str
    pid: int
    seconds: float
    warm: float
    last: float

    @property
    def growth(self) -> float:
        """Return the growth as a share."""
        return self.last / self.warm - 1


class Memory:
    """The resident memory of every process of a run, over time."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)

    def note(self, name: str, pid: int, at: float, megabytes: float) -> None:
        """Take one measurement; `at` is in seconds."""
        self._seen[name, pid].append((at, megabytes))

    def processes(self, warm_seconds: float = WARM_SECONDS) -> list[ProcessMemory]:
        """Return the processes that ran long enough to be judged."""
        found: list[ProcessMemory] = []
        for (name, pid), looks in self._seen.items():
            began, ended = looks[0][0] + warm_seconds, looks[-1][0]
            if ended - began < 2 * _END_SECONDS:
                continue
            warm = median(size for at, size in looks if began <= at < began + _END_SECONDS)
            last = median(size for at, size in looks if at > ended - _END_SECONDS)
            found.append(ProcessMemory(name, pid, ended - began, warm, last))
        return found


def megabytes(pid: int) -> float:
    """Return a process's resident memory; raise OSError if it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    [resident] = [line.split()[1] for line in lines if line.startswith("VmRSS:")] or ["0"]
    return int(resident) / 1024


async def hold(feeder: Part, gateway: Part, status: FeedStatus, port: int) -> dict[str, Holding]:
    """Return what feeder and workers hold, once every worker has answered."""
    said: dict[int, Mapping[str, Any]] = {}
    # The workers share one port, and any of them answers.
    while not (workers := gateway.workers) or not said.keys() >= set(workers):
        answer = await asyncio.to_thread(_ask, port)
        await asyncio.sleep(0.01)
        said[answer.get("worker", 0)] = answer
    holdings = {"feeder": _holding(feeder.pid, 0, status.topics + status.upstream, 0)}
    for number, pid in enumerate(workers):
        counted = said[pid]["connections"], said[pid]["topics"], said[pid]["tasks"]
        holdings[f"worker {number}"] = _holding(pid, *counted)
    return holdings


def _holding(pid: int, clients: int, topics: int, tasks: int) -> Holding:
    descriptors, threads = (sum(1 for _ in Path(f"/proc/{pid}/{part}").iterdir()) for part in ("fd", "task"))
    return Holding(descriptors, threads, clients, topics, tasks)


def _ask(port: int) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            said: dict[str, Any] = orjson.loads(answer.read())
    except urllib.error.HTTPError as exc:
        said = orjson.loads(exc.read())
    except OSError:
        # The gateway does not listen yet.
        return {}
    return said
