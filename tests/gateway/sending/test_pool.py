"""What waits for all clients of a worker: one table of newest records a topic, and one bound in bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.sending import newest
from gateway.sending.outbox import Item, Outbox
from gateway.sending.pool import Pool
from gateway.sending.sender import TAKE_BYTES
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, behaviour_of

MARKET = Topic("whole/SH/")
EVENTS = Topic("quote/600519.SH/l2transaction/")


def frame(body: Mapping[str, object], seq: int = 1, epoch: int = 1, topic: Topic = MARKET) -> Frame:
    return Frame(topic, epoch, seq, 0, 0, frames.encode(body))


def item(given: Frame) -> Item:
    return Item(given, behaviour_of(given.topic))


def behind(pool: Pool, limit: int = 2**20) -> Outbox:
    """Return the outbox of a client that is behind."""
    outbox = Outbox(limit, pool=pool)
    outbox.put_control(b"x")
    outbox.conflate()
    return outbox


def market(turn: int, codes: int = 500) -> list[Frame]:
    records = {f"{number:06}.SH": {"n": turn, "pad": "x" * 400} for number in range(codes)}
    names = list(records)
    return [frame({code: records[code] for code in names[at : at + 100]}, turn) for at in range(0, codes, 100)]


def test_market_waits_once_for_all_clients() -> None:
    pool = Pool(2**30)
    outboxes = [behind(pool) for _ in range(200)]
    for turn in (1, 2, 3):
        for given in market(turn):
            for outbox in outboxes:
                outbox.put(item(given))
    once = 500 * 420
    assert once < pool.tables.size < 2 * once
    assert pool.size < once
    for outbox in outboxes:
        sent = [json.loads(payload) for payload in outbox.take(TAKE_BYTES)[1:]]
        assert {record["n"] for body in sent for record in body.values()} == {3}
        assert sum(map(len, sent)) == 500
        assert outbox.skipped == 1000


def test_frame_is_taken_apart_once_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, split = Pool(2**30), []
    outboxes = [behind(pool) for _ in range(50)]
    for outbox in outboxes:
        for given in market(1):
            outbox.put(item(given))
    monkeypatch.setattr(newest.frames, "split", lambda body: split.append(body) or split_body(body))
    later = market(2)
    for given in later:
        for outbox in outboxes:
            outbox.put(item(given))
    assert len(split) == len(later)


split_body = frames.split


def test_late_older_value_replaces_no_newer_one() -> None:
    # A client that has just joined is given the last value, and then frames that others were sent before it joined.
    pool = Pool(2**30)
    first, second = behind(pool), behind(pool)
    for seq in (1, 2, 3):
        first.put(item(frame({"600519.SH": {"n": seq}, f"60000{seq}.SH": {"n": seq}}, seq)))
    for seq in (1, 2):
        second.put(item(frame({"600519.SH": {"n": seq}}, seq)))
    second.put(item(frame({"600000.SH": {"n": 2}}, 2)))
    for outbox in (first, second):
        sent = [json.loads(payload) for payload in outbox.take(TAKE_BYTES)[1:]]
        assert {code: record for body in sent for code, record in body.items()}["600519.SH"] == {"n": 3}


def test_value_of_another_epoch_replaces_an_older_one() -> None:
    # The clock of the feeder's machine was set back.
    pool = Pool(2**30)
    outbox = behind(pool)
    for epoch, seq in ((5, 10), (5, 11), (4, 1), (4, 2)):
        outbox.put(item(frame({"600519.SH": {"n": epoch * 100 + seq}}, seq, epoch)))
        outbox.put(item(frame({"600000.SH": {}}, seq, epoch)))
    [sent] = [json.loads(payload) for payload in outbox.take(TAKE_BYTES)[1:]]
    assert sent["600519.SH"] == {"n": 402}


def test_table_is_gone_once_nothing_waits() -> None:
    pool = Pool(2**30)
    outbox = behind(pool)
    for given in market(1):
        outbox.put(item(given))
    del given
    assert pool.tables.size > 0
    while outbox.take(TAKE_BYTES):
        pass
    assert (pool.size, pool.tables.size) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_random_clients_get_the_newest_of_a_shared_table(seed: int) -> None:
    dice = random.Random(seed)
    pool = Pool(2**30)
    outboxes = [Outbox(dice.choice([300, 3000, 30_000]), pool=pool) for _ in range(5)]
    got: list[dict[str, list[int]]] = [{} for _ in outboxes]
    codes = [f"{number:06}.SH" for number in range(40)]

    def read(place: int, limit: int) -> None:
        for payload in outboxes[place].take(limit):
            for code, record in json.loads(payload).items():
                got[place].setdefault(code, []).append(record["n"])

    last: dict[str, int] = {}
    for seq in range(1, 300):
        body: dict[str, Any] = {}
        for code in dice.sample(codes, dice.randrange(1, 12)):
            body[code] = {"n": seq, "pad": "x" * dice.randrange(60)}
            last[code] = seq
        given = frame(body, seq)
        for outbox in outboxes:
            outbox.put(item(given))
        if dice.random() < 0.3:
            read(dice.randrange(5), dice.choice([1, 200, 2000]))
    for place, outbox in enumerate(outboxes):
        while len(outbox):
            read(place, 500)
        for code, numbers in got[place].items():
            assert numbers == sorted(numbers)
            assert numbers[-1] == last[code]
        assert got[place].keys() == last.keys()
    assert pool.size == 0


def test_bytes_of_closed_outboxes_no_longer_count() -> None:
    pool = Pool(2**30)
    outbox = Outbox(2**20, pool=pool)
    outbox.put(item(frame({"600519.SH": {}})))
    assert pool.size == outbox.size > 0
    outbox.close()
    outbox.put_control(b"late")
    assert pool.size == 0


def test_full_pool_conflates_before_it_drops() -> None:
    called: list[bool] = []
    pool = Pool(10_000, lambda: called.append(True))
    values, events = Outbox(2**20, pool=pool), Outbox(2**20, pool=pool)
    few = Outbox(2**20, pool=pool)
    few.put_control(b"x" * 100)
    for seq in range(60):
        values.put(item(frame({"600519.SH": {"n": seq, "pad": "x" * 100}}, seq)))
    for seq in range(20):
        events.put(item(frame({"600519.SH": [{"n": seq, "pad": "x" * 100}]}, seq, topic=EVENTS)))
    assert called == [True]
    assert pool.relieve([few, values, events]) == []
    assert values.conflating
    assert pool.size <= pool.limit


def test_client_for_which_most_waits_is_dropped_first() -> None:
    called: list[bool] = []
    pool = Pool(20_000, lambda: called.append(True))
    outboxes = [Outbox(2**20, pool=pool) for _ in range(3)]
    for outbox, count in zip(outboxes, (10, 100, 1), strict=True):
        for seq in range(count):
            outbox.put(item(frame({"600519.SH": [{"n": seq, "pad": "x" * 150}]}, seq, topic=EVENTS)))
    assert called == [True]
    assert pool.relieve(outboxes) == [1]
    outboxes[1].close()
    assert pool.size < pool.limit
    # It calls again when it is full again.
    for seq in range(200):
        outboxes[0].put(item(frame({"600519.SH": [{"n": seq, "pad": "x" * 150}]}, seq, topic=EVENTS)))
    assert called == [True, True]
