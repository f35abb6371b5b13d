"""Frames that arrive in pieces, and frames that are lost."""

from __future__ import annotations

import pytest

from qmt_bridge.commands.load.client import Client
from qmt_bridge.commands.load.crew import Crew
from qmt_bridge.commands.load.load import Load
from qmt_bridge.wire.frames import framed
from tests.support.stamped_server import CODES, stamped


@pytest.mark.parametrize("sample", [1, 3])
@pytest.mark.parametrize("piece", [1, 2, 7, 300, 100_000])
def test_frames_are_counted_wherever_they_are_cut(piece, sample):
    load = Load("ws://h/ws/realtime", CODES, clients=1, sample=sample)
    crew = Crew(load, [0], Client)
    client = crew._clients[0]
    wanted = [framed(stamped(code, seq)) for seq in range(1, 41) for code in CODES]
    # Lengths of all three kinds, another opcode between them, and a message in two pieces.
    wanted.insert(7, framed(stamped("688001.SH", 1, data="y" * 70_000)))
    wanted.insert(9, framed(stamped("688002.SH", 1, data=""), binary=True))
    whole = b"".join([*wanted, b"\x8a\x00", b"\x01\x03abc", b"\x80\x03def"])
    try:
        client.begin()
        rest = b""
        for start in range(0, len(whole), piece):
            data = bytearray(rest + whole[start : start + piece])
            rest = bytes(data[client.split(data, 0, len(data)) :])
        assert rest == b""
        assert client.frames == len(wanted) + 1
        assert client.unstamped == 1
        if sample == 1:
            assert client.positions == {code.encode(): 40 for code in CODES} | {b"688001.SH": 1, b"688002.SH": 1}
    finally:
        crew.leave()


def test_losses_during_a_restart_of_the_feeder_are_not_counted():
    crew = Crew(Load("ws://h/ws/realtime", CODES, clients=1), [0], Client)
    client = crew._clients[0]
    try:
        frames = [stamped("600519.SH", 5), stamped("600519.SH", 8), stamped("600519.SH", 3, epoch=8)]
        data = bytearray(b"".join(map(framed, frames)))
        client.split(data, 0, len(data))
        client.end()
        assert client.lost() == 2
        assert client.positions == {b"600519.SH": 3}
        assert client.repeated == 0
        assert crew.epochs == {b"8"}
    finally:
        crew.leave()
