"""A client that has given up what is scarce has another of it at once, also where the feeder has no more places."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qmt_bridge.config import Config
from tests.support.ports import ANY_ADDRESSES
from tests.support.rig import Client, Rig, running_rig

# Of each kind at the source.
ROOM = 2
ROUNDS = 15


def code(number: int) -> str:
    return f"{number:06}.SZ"


class Depths:
    """Depths of one client; `take` returns the error code, or None, and `give` the one that it took."""

    path = "/ws/l2_thousand"

    async def take(self, client: Client, number: int) -> str | None:
        rejected = (await client.subscribed(stocks=[code(number)]))["rejected"]
        return rejected[0]["error"] if rejected else None

    async def give(self, client: Client, number: int) -> None:
        await client.send({"action": "unsubscribe", "id": 2, "stocks": [code(number)]})
        await client.receive()


class Formulas:
    """Likewise formulas, which have a number of their own on each socket."""

    path = "/ws/formula"

    def __init__(self) -> None:
        self.held: dict[int, int] = {}

    async def take(self, client: Client, number: int) -> str | None:
        await client.send({"id": number, "formula_name": "MA", "stock_code": code(number)})
        ack = await client.receive()
        self.held[number] = ack.get("seq_id", 0)
        return None if ack.get("action") == "subscribed" else ack["code"]

    async def give(self, client: Client, number: int) -> None:
        await client.send({"action": "unsubscribe", "id": 2, "seq_id": self.held.pop(number)})
        assert (await client.receive())["action"] == "unsubscribed"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a feeder with two places of each scarce kind, and two workers."""
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path), grace=0.0, max_depths=ROOM, max_formulas=ROOM)
    with running_rig(config) as rig:
        rig.serve()
        rig.serve()
        yield rig


@pytest.mark.parametrize("kind", [Depths, Formulas])
async def test_place_that_was_given_up_is_free_at_once(rig: Rig, kind: type[Depths | Formulas]) -> None:
    of = kind()
    async with (
        rig.connect(of.path) as one,
        rig.connect(of.path) as same,
        rig.connect(of.path, rig.servers[1]) as other,
    ):
        assert [await of.take(one, number) for number in range(ROOM + 1)] == [None, None, "symbol_limit"]
        held = one, 0
        for number in range(10, 10 + ROUNDS):
            # The same socket, another one of the same worker, or one of another worker.
            taker = (one, same, other)[number % 3]
            await of.give(*held)
            held = taker, number
            assert await of.take(*held) is None
        assert await of.take(other, 50) == "symbol_limit"


@pytest.mark.parametrize("kind", ["depths", "formulas"])
async def test_place_is_free_for_a_request_right_behind(rig: Rig, kind: str) -> None:
    # No answer is awaited between the two requests, so the feeder reads both at once.
    is_depth = kind == "depths"
    async with rig.connect(Depths.path if is_depth else Formulas.path) as client:

        async def ask(number: int) -> None:
            wanted = {"action": "subscribe", "stocks": [code(number)]}
            await client.send(
                {"id": number} | (wanted if is_depth else {"formula_name": "MA", "stock_code": code(number)})
            )

        async def give(number: int, seq_id: int) -> None:
            named = {"stocks": [code(number)]} if is_depth else {"seq_id": seq_id}
            await client.send({"action": "unsubscribe", "id": 1000 + number} | named)

        for number in range(ROOM):
            await ask(number)
        acks = [await client.receive() for _ in range(ROOM)]
        for number in range(ROUNDS):
            await give(number, acks[number].get("seq_id", 0))
            await ask(ROOM + number)
            await client.receive()
            acks.append(await client.receive())
        refused = [ack for ack in acks if ack.get("rejected") or "code" in ack]
        assert refused == []


async def test_place_of_a_closed_socket_is_free_at_once(rig: Rig) -> None:
    of = Depths()
    async with rig.connect(of.path) as keeps:
        assert await of.take(keeps, 0) is None
        for number in range(1, 7):
            async with rig.connect(of.path, rig.servers[number % 2]) as client:
                assert await of.take(client, number) is None
