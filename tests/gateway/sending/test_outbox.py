"""The outbox: frames in order while there is room, conflation by the rule of the topic when there is none."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest

from gateway.sending.outbox import CONFLATE_FRAMES, CONFLATE_FROM, Item, Outbox
from gateway.sending.sender import TAKE_BYTES
from gateway.sending.view import View
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame, LastValue
from qmt_bridge.wire.topics import Topic, behaviour_of

ROOMY = 1_000_000


def item(topic: str, body: object, view: View | None = None) -> Item:
    return Item(Frame(Topic(topic), 1, 1, 0, 0, frames.encode(body)), behaviour_of(topic), view)


def drain(outbox: Outbox) -> list[object]:
    texts: list[object] = []
    while taken := outbox.take(TAKE_BYTES):
        texts += [json.loads(text) for text in taken]
    return texts


def test_frames_are_sent_in_order_while_there_is_room() -> None:
    outbox = Outbox(ROOMY)
    sent = [{"600519.SH": [{"n": n}]} for n in range(200)]
    for body in sent:
        outbox.put(item("quote/600519.SH/tick/", body))
    assert drain(outbox) == sent
    assert (outbox.skipped, outbox.size) == (0, 0)


def test_full_outbox_keeps_the_newest_per_topic() -> None:
    outbox = Outbox(2000)
    for n in range(100):
        for code in ("000001.SZ", "600519.SH"):
            outbox.put(item(f"quote/{code}/tick/", {code: [{"n": n}]}))
    assert drain(outbox) == [{"000001.SZ": [{"n": 99}]}, {"600519.SH": [{"n": 99}]}]
    assert outbox.skipped == 198


def test_full_outbox_keeps_the_newest_per_code_of_a_market() -> None:
    outbox = Outbox(1000)
    outbox.put(item("whole/SH/", {"688001.SH": {"n": "traded once"}}))
    for n in range(100):
        outbox.put(item("whole/SH/", {"600519.SH": {"n": n}, "601988.SH": {"n": -n}}))
    merged = {code: tick for text in drain(outbox) for code, tick in text.items()}  # type: ignore[attr-defined]
    assert merged == {"688001.SH": {"n": "traded once"}, "600519.SH": {"n": 99}, "601988.SH": {"n": -99}}
    assert outbox.skipped == 198


def test_merged_market_is_sent_in_batches() -> None:
    outbox = Outbox(10_000)
    record = {"pad": "x" * 1000}
    for n in range(1200):
        outbox.put(item("whole/SH/", {f"{600000 + n}.SH": record}))
    texts = drain(outbox)
    assert len(texts) > 2
    assert sum(map(len, texts)) == 1200  # type: ignore[arg-type]


def test_values_of_two_formula_subscriptions_are_separate() -> None:
    outbox = Outbox(200)
    for n in range(50):
        for seq_id in (1, 2):
            outbox.put(item("formula/x/", {"n": n}, View(seq_id=seq_id)))
    assert drain(outbox) == [{"type": "formula_update", "seq_id": id, "n": 49} for id in (1, 2)]


def test_order_is_kept_again_after_an_episode() -> None:
    outbox = Outbox(500)
    for n in range(100):
        outbox.put(item("quote/600519.SH/tick/", {"n": n}))
    assert outbox.conflating
    drain(outbox)
    assert not outbox.conflating
    for n in range(3):
        outbox.put(item("quote/600519.SH/tick/", {"n": n}))
    assert drain(outbox) == [{"n": 0}, {"n": 1}, {"n": 2}]


@pytest.mark.parametrize("control", [True, False], ids=["control", "trade"])
def test_outbox_overflows_with_data_that_may_not_be_lost(control: bool) -> None:
    outbox = Outbox(2000)
    count = 0
    while not outbox.overflowed:
        count += 1
        assert count < 100
        if control:
            outbox.put_control(b'{"type":"error"}')
        else:
            outbox.put(item("trade/1/", {"type": "order", "seq": count}))
    assert len(drain(outbox)) == count


def test_quotes_are_conflated_to_make_room_for_control_frames() -> None:
    outbox = Outbox(2000)
    for n in range(100):
        outbox.put(item("quote/600519.SH/tick/", {"n": n}))
    outbox.put_control(b'{"type":"pong"}')
    assert not outbox.overflowed
    assert drain(outbox) == [{"n": 99}, {"type": "pong"}]


def test_waiting_bytes_are_counted_while_conflating() -> None:
    outbox = Outbox(1000)
    for n in range(20):
        outbox.put(item("whole/SH/", {"600519.SH": {"n": n, "pad": "x" * 100}}))
        outbox.put(item("quote/600519.SH/tick/", {"600519.SH": [{"n": n, "pad": "x" * 100}]}))
        outbox.put(item("trade/1/", {"n": n}))
    assert outbox.conflating
    # One merged market, one quote, twenty events.
    assert len(outbox) == 22
    assert 1500 < outbox.size < 2500
    drain(outbox)
    assert (outbox.size, len(outbox)) == (0, 0)


def test_replaced_records_do_not_make_the_outbox_overflow() -> None:
    outbox = Outbox(2000)
    for n in range(1000):
        outbox.put(item("whole/SH/", {"600519.SH": {"n": n, "pad": "x" * 100}}))
        outbox.put(item("quote/600519.SH/tick/", {"n": n, "pad": "x" * 100}))
    outbox.put(item("trade/1/", {"type": "order"}))
    assert not outbox.overflowed


def test_one_take_returns_about_a_megabyte() -> None:
    outbox = Outbox(100_000_000)
    for n in range(100):
        outbox.put(item("trade/1/", {"n": n, "pad": "x" * 100_000}))
    assert len(outbox.take(TAKE_BYTES)) == 11
    assert len(outbox) == 89


def test_conflation_begins_long_before_trade_events_overflow() -> None:
    outbox = Outbox(4 * CONFLATE_FROM)
    size = 0
    while not outbox.conflating:
        outbox.put(item("quote/600519.SH/tick/", {"pad": "x" * 1000}))
        size += 1000
        assert size <= CONFLATE_FROM
    while not outbox.overflowed:
        outbox.put(item("trade/1/", {"pad": "x" * 1000}))
        size += 1000
    assert 3.5 < size / CONFLATE_FROM < 5


def test_few_large_frames_are_not_conflated() -> None:
    outbox = Outbox(16 * CONFLATE_FROM)
    for number in range(CONFLATE_FRAMES + 1):
        assert not outbox.conflating
        outbox.put(item("l2/600519.SH/0/", {"n": number, "pad": "x" * CONFLATE_FROM}))
    assert outbox.conflating


def test_websocket_frames_are_payloads_with_a_header() -> None:
    outbox = Outbox(200)
    bodies = [item("quote/600519.SH/tick/", {"n": 1}), item("formula/x/", {"n": 2}, View(seq_id=1))]
    for each in bodies:
        outbox.put(each)
    outbox.put_control(b"{}")
    outbox.put(item("whole/SH/", {"600519.SH": 3}))
    taken = outbox.take(TAKE_BYTES, framed=True)
    texts = [b'{"n":1}', b'{"type":"formula_update","seq_id":1,"n":2}', b"{}", b'{"600519.SH":3}']
    assert taken == [b"\x81" + bytes([len(text)]) + text for text in texts]


def test_shared_frame_is_built_once_for_all_clients() -> None:
    shared = item("quote/600519.SH/tick/", {"n": 1})
    boxes = [Outbox(ROOMY), Outbox(ROOMY)]
    for outbox in boxes:
        outbox.put(shared)
    assert boxes[0].take(TAKE_BYTES, framed=True)[0] is boxes[1].take(TAKE_BYTES, framed=True)[0]


def nested(depth: int) -> msgspec.Raw:
    """Return what is nested deeper than it can be encoded again: only another program publishes it."""
    return msgspec.Raw(b"[" * depth + b"]" * depth)


def test_only_a_frame_that_cannot_be_rendered_is_left_out() -> None:
    for limit in (ROOMY, 300):
        outbox = Outbox(limit)
        for topic, body in (
            ("trade/1/", {"n": 1}),
            ("trade/1/", {"n": nested(300)}),
            ("whole/SH/", [1]),
            ("whole/SH/", {"600519.SH": 2}),
        ):
            outbox.put(item(topic, body)._replace(view=View(fields=("n",))))
        assert {"n": 1} in (sent := drain(outbox))
        assert {"600519.SH": 2} in sent
        assert outbox.unfit >= 1
        assert (outbox.size, len(outbox)) == (0, 0)


@pytest.mark.parametrize("period", ["l2transaction", "l2order", "l2orderqueue", "announcement"])
def test_all_prints_are_kept_up_to_the_limit(period: str) -> None:
    outbox = Outbox(5000)
    sent: list[object] = []
    while not outbox.overflowed:
        sent.append({"600519.SH": [{"time": 1, "tradeIndex": len(sent)}]})
        outbox.put(item(f"quote/600519.SH/{period}/", sent[-1]))
        assert len(sent) < 100
    assert (drain(outbox), outbox.skipped) == (sent, 0)


def test_all_bars_are_kept_up_to_the_limit() -> None:
    outbox = Outbox(5000)
    time = 0
    while not outbox.overflowed:
        time += 1
        for state in range(3):
            outbox.put(item("quote/600519.SH/1m/", {"600519.SH": [{"time": time, "state": state}]}))
        assert time < 100
    [bars] = drain(outbox)
    assert bars == {"600519.SH": [{"time": each, "state": 2} for each in range(1, time + 1)]}
    assert outbox.skipped == 2 * time
    assert time > 10


def test_whole_market_in_the_outbox_closes_no_client() -> None:
    # A snapshot of 26,000 codes is larger than an outbox, but the number of codes limits it.
    outbox = Outbox(50_000)
    for turn in range(3):
        for number in range(1000):
            outbox.put(item("whole/SH/", {f"{number:06}.SH": {"n": turn, "pad": "x" * 100}}))
        outbox.put_control(b'{"type":"feed"}')
    assert not outbox.overflowed
    assert sum(map(len, outbox.take(TAKE_BYTES))) > outbox.limit


def test_only_a_batch_that_cannot_be_rendered_is_left_out() -> None:
    outbox = Outbox(300)
    pad = "x" * 300_000
    for number, value in ((1, nested(300)), (2, 1), (3, 1)):
        body = {"600519.SH": [{"time": number, "value": value, "pad": pad}]}
        outbox.put(item("quote/600519.SH/1m/", body)._replace(view=View(fields=("time", "value", "pad"))))
    assert [record["time"] for body in drain(outbox) for record in body["600519.SH"]] == [2, 3]  # type: ignore[index]
    assert outbox.unfit == 1


CODES = ("000001.SZ", "600519.SH")


class _Model:
    """What one client should be sent, by topic, view and code; the frames that it receives are compared with that."""

    def __init__(self) -> None:
        self.sent: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.got: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def make(self, dice: random.Random, number: int) -> Item:
        kind = dice.choice(["tick", "l2quote", "1m", "1d", "l2transaction"])
        code = dice.choice(CODES)
        records = [
            # A bar may be updated a little later; `n` shows its newest state.
            {
                "time": number // 40 + dice.randrange(2),
                "n": number + part / 10,
                "of": kind,
                "pad": "x" * dice.randrange(90),
            }
            for part in range(dice.choice([0, 1, 1, 1, 2, 3]))
        ]
        self.sent.setdefault((kind, code), []).extend(records)
        return item(f"quote/{code}/{kind}/", {code: records})

    def read(self, outbox: Outbox) -> None:
        for payload in outbox.take(TAKE_BYTES):
            for code, records in json.loads(payload).items():
                for record in records:
                    self.got.setdefault((record["of"], code), []).append(record)

    def check(self) -> None:
        for (kind, code), sent in self.sent.items():
            got = self.got.get((kind, code), [])
            numbers = [record["n"] for record in got]
            if kind == "l2transaction":
                assert got == sent
            elif kind in ("tick", "l2quote"):
                assert numbers == sorted(set(numbers))
                assert got[-1:] == sent[-1:]
            else:
                # The states of each bar are in order, the newest is last, and no bar is missing.
                for time in {record["time"] for record in sent}:
                    states = [record["n"] for record in got if record["time"] == time]
                    assert states == sorted(set(states))
                    assert states[-1] == max(record["n"] for record in sent if record["time"] == time)


@pytest.mark.parametrize("seed", range(40))
def test_model_of_random_frames_and_reads_loses_nothing(seed: int) -> None:
    dice = random.Random(seed)
    outbox, model = Outbox(dice.choice([300, 3000, 30_000])), _Model()
    for number in range(dice.randrange(10, 600)):
        outbox.put(model.make(dice, number))
        if dice.random() < 0.05:
            model.read(outbox)
    while len(outbox):
        model.read(outbox)
    model.check()
    sent, got = (sum(map(len, each.values())) for each in (model.sent, model.got))
    assert (outbox.skipped, outbox.size) == (sent - got, 0)


def part(seq: int, body: object, source: object = None) -> Item:
    behaviour = behaviour_of("whole/SH/")._replace(versions="none")
    return Item(LastValue(Topic("whole/SH/"), 1, seq, 0, 0, frames.encode(body)), behaviour, None, source)


def whole(seq: int, body: object, source: object, view: View | None = None, versions: str = "code") -> Item:
    behaviour = behaviour_of("whole/SH/")._replace(versions=versions)  # type: ignore[arg-type]
    frame = Frame(Topic("whole/SH/"), 1, seq, 1, 1, frames.encode(body))
    return Item(frame, behaviour, view, source)


def test_last_value_of_mode_all_does_not_overflow() -> None:
    outbox = Outbox(2000)
    parts: list[object] = [{f"60{number:04}.SH": {"pad": "x" * 500}} for number in range(100)]
    for body in parts:
        outbox.put(part(5, body))
    outbox.put_control(b'{"type":"snapshot_end"}')
    assert not outbox.overflowed
    assert drain(outbox) == [*parts, {"type": "snapshot_end"}]
    assert (outbox.size, len(outbox)) == (0, 0)
    for _ in range(10):
        outbox.put(whole(6, {"600000.SH": {"pad": "x" * 500}}, None, versions="none"))
    assert outbox.overflowed


def test_newer_last_value_replaces_the_parts_that_wait() -> None:
    outbox = Outbox(100)
    for seq in (5, 9):
        for number in range(10):
            outbox.put(part(seq, {f"60000{number}.SH": seq}))
        outbox.put(whole(seq + 1, {"600000.SH": seq + 1}, None, versions="none"))
        if seq == 5:
            assert json.loads(outbox.take(1)[0]) == {"600000.SH": 5}
    assert drain(outbox) == [{"600000.SH": 6}, *({f"60000{number}.SH": 9} for number in range(10)), {"600000.SH": 10}]
    assert (outbox.skipped, outbox.size) == (9, 0)


def test_frames_of_a_new_subscription_stay_behind_its_ack() -> None:
    outbox = Outbox(10)
    outbox.put(whole(1, {"600519.SH": 1}, "first"))
    outbox.put_control(b'{"type":"subscribed"}')
    outbox.put(whole(2, {"600519.SH": 2}, "second"))
    assert drain(outbox) == [{"600519.SH": 1}, {"type": "subscribed"}, {"600519.SH": 2}]


def test_what_waits_of_an_ended_subscription_is_dropped() -> None:
    outbox = Outbox(10)
    outbox.put_control(b'{"type":"pong"}')
    for number in range(50):
        source = f"subscription {number}"
        outbox.put(whole(number, {"600519.SH": number}, source))
        outbox.put(part(number, {"600519.SH": number}, source))
        outbox.drop(source)
    assert drain(outbox) == [{"type": "pong"}]
    assert outbox.size == 0


def test_options_that_change_to_and_fro_keep_the_order() -> None:
    outbox = Outbox(10)
    stamped = View(stamped=True)
    for seq, view, versions in ((1, None, "code"), (2, stamped, "code"), (3, None, "code"), (4, None, "none")):
        outbox.put(whole(seq, {"600519.SH": seq}, "one", view, versions))
    outbox.put(whole(5, {"600519.SH": 5}, "one"))
    assert drain(outbox) == [{"600519.SH": 3}, {"600519.SH": 4}, {"600519.SH": 5}]
