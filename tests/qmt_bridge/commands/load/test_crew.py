"""The clients of one process, with a real server."""

from __future__ import annotations

from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crew import Crew
from qmt_bridge.commands.load.load import Load
from tests.support.stamped_server import CODES, every_tenth_lost, served


def test_a_stalled_client_reads_nothing_once_counting_has_begun():
    with served(every_tenth_lost) as url:
        crew = Crew(Load(url, CODES, clients=3, stalled=2), range(3), Client)
        try:
            assert not crew.connect()
            assert len(crew.selector.get_map()) == 3
            crew.begin()
            assert [key.data.number for key in crew.selector.get_map().values()] == [0]
        finally:
            crew.leave()
