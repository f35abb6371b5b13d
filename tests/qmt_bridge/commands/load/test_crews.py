"""The client processes, with a real server."""

from __future__ import annotations

import subprocess
import sys
import threading

from websockets.sync.server import ServerConnection

from tests.support.stamped_server import every_tenth_lost, served
from tests.support.waiting import SLOWNESS

DEADLINE = 30.0 * SLOWNESS


def test_the_clients_end_with_their_parent():
    program = (
        "import sys, time\n"
        "from qmt_bridge.commands.load.crews import Crews\nfrom qmt_bridge.commands.load.load import Load\n"
        "with Crews(Load(sys.argv[1], ('600519.SH',), clients=2, cores=(0,))) as crews:\n"
        "    crews.connect(); print('connected', flush=True); time.sleep(60)"
    )
    left = threading.Semaphore(0)

    def handler(socket: ServerConnection, codes: list[str]) -> None:
        try:
            every_tenth_lost(socket, codes)
        finally:
            left.release()

    with served(handler) as url:
        with subprocess.Popen([sys.executable, "-c", program, url], stdout=subprocess.PIPE) as parent:
            try:
                assert parent.stdout is not None
                assert parent.stdout.readline() == b"connected\n"
            finally:
                parent.kill()
        assert left.acquire(timeout=DEADLINE)
        assert left.acquire(timeout=DEADLINE)
