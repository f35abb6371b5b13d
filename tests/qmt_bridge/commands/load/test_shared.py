"""The topic by which a code is counted."""

from __future__ import annotations

from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crew import Crew
from qmt_bridge.commands.load.load import Load


def test_a_market_is_one_topic_and_a_code_of_its_own_another():
    crew = Crew(Load("ws://h/ws/whole_quote", ("SH", "000001.SZ", "600000.SH"), clients=1), [], Client)
    try:
        found = [crew.topics[code] for code in (b"600519.SH", b"000001.SZ", b"600000.SH")]
        # The gateway sends a code once, with its market, where both are asked for.
        assert found == [b"SH", b"000001.SZ", b"SH"]
    finally:
        crew.leave()
