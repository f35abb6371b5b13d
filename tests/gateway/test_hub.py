"""The hub without sockets: what members receive and which questions are asked, for each order of messages."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest

from gateway.hub import COMPARE_SECONDS, Hub
from gateway.streams.member import Refusal
from gateway.streams.stream import ANSWER_TIMEOUT
from qmt_bridge.errors import ErrorCode
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import ALL_TRADES, Topic, quote_topic, trade_topic, whole_topic

TICK = quote_topic("600519.SH")
SH = whole_topic("SH")
TRADE = trade_topic("1000000365")
EPOCH = 100


class Wire:
    """Records what the hub sends to the feeder."""

    def __init__(self) -> None:
        self.subscribed: list[Topic] = []
        self.asked: list[tuple[list[Topic], int | None]] = []
        # The epoch that each question names, and whether the position is exact.
        self.epochs: list[tuple[float | None, bool]] = []
        self.away = False

    def subscribe(self, topic: Topic) -> None:
        self.subscribed.append(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.subscribed.remove(topic)

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        self.asked.append((topics, None if after is None else after.seq))
        self.epochs.append((None, False) if after is None else (after.epoch, after.exact))
        return None if self.away else len(self.asked)


class Client:
    """Records what a member receives, as (topic, seq)."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.bodies: list[object] = []
        self.lost = 0
        # For each snapshot that ended: the number of frames by then, and the number of its codes.
        self.ended: list[tuple[int, int]] = []
        self.acts: list[Callable[[float], None]] = []
        self.outcomes: list[tuple[str, ErrorCode | None]] = []
        self.refusal: Refusal | None = None

    def deliver(self, frame: Frame) -> None:
        self.got.append(frame.seq)
        self.bodies.append(frame.data)

    def starts(self, epoch: int, seq: int) -> bool:
        return True

    def settle(self, outcome: str, refusal: Refusal | None) -> None:
        self.outcomes.append((outcome, None if refusal is None else refusal.code))
        self.refusal = refusal

    def when_drained(self, act: Callable[[float], None]) -> None:
        self.acts.append(act)

    def missed(self, count: int) -> None:
        self.lost += count

    def snapshot_ended(self, count: int) -> None:
        self.ended.append((len(self.got), count))


def frame(topic: Topic, seq: int, epoch: int = EPOCH, body: object = None) -> Frame:
    return Frame(topic, epoch, seq, 1, 2, frames.encode({"seq": seq} if body is None else body))


def state(
    ask: int, topic: Topic, seq: int, *, body: object = None, epoch: int = EPOCH, kind: str = "live", more: bool = False
) -> TopicState:
    encoded = None if body is None else frames.encode(body)
    return TopicState(ask, topic, kind, epoch=epoch, seq=seq, body=encoded, more=more)  # type: ignore[arg-type]


def joined(topic: Topic = TICK, seq: int = 5) -> tuple[Hub, Wire, Client]:
    """Return a hub with one member that has the last value `seq`."""
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({topic: client}, 0.0)
    hub.answer(state(1, topic, seq, body=None if topic == ALL_TRADES else {"seq": seq}), 0.0)
    client.got.clear()
    return hub, wire, client


def test_first_member_subscribes_and_the_last_unsubscribes() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({TICK: one}, 0.0)
    hub.join({TICK: two}, 0.0)
    assert wire.subscribed == [TICK]
    hub.leave(TICK, one)
    assert wire.subscribed == [TICK]
    hub.leave(TICK, two)
    assert wire.subscribed == []
    assert not hub.streams
    assert not hub.market


def test_topic_is_found_by_its_bytes_if_it_is_market_data() -> None:
    hub = Hub(Wire())
    hub.join({TICK: Client(), ALL_TRADES: Client()}, 0.0)
    assert hub.market == {TICK.encode(): hub.streams[TICK]}


def test_joiner_gets_the_last_value_and_newer_frames_once() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    for seq in (4, 5, 6):
        hub.receive(frame(TICK, seq), 0.0)
    assert client.got == []
    hub.answer(state(1, TICK, 5, body={"seq": 5}), 0.0)
    hub.receive(frame(TICK, 7), 0.0)
    assert client.got == [5, 6, 7]
    assert client.outcomes == [("live", None)]


def test_answer_ahead_of_the_subscription_is_not_repeated() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 5, body={"seq": 5}), 0.0)
    for seq in (4, 5, 6):
        hub.receive(frame(TICK, seq), 0.0)
    assert client.got == [5, 6]


def test_late_joiner_costs_earlier_members_no_frame() -> None:
    hub, _, old = joined(seq=5)
    late = Client()
    hub.join({TICK: late}, 0.0)
    hub.answer(state(2, TICK, 7, body={"seq": 7}), 0.0)
    for seq in (6, 7, 8):
        hub.receive(frame(TICK, seq), 0.0)
    assert old.got == [6, 7, 8]
    assert late.got == [7, 8]


def test_joiners_share_a_pending_question() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({SH: one}, 0.0)
    hub.answer(state(1, SH, 9, body={"600519.SH": 1}, more=True), 0.0)
    hub.join({SH: two}, 0.1)
    hub.answer(state(1, SH, 9, body={"601988.SH": 2}), 0.1)
    assert len(wire.asked) == 1
    assert one.bodies == two.bodies == [{"600519.SH": 1}, {"601988.SH": 2}]


@pytest.mark.parametrize("topic", [TICK, SH])
def test_joiner_shares_no_question_older_than_the_newest_frame(topic: Topic) -> None:
    hub, wire, one = joined(topic)
    two, again = Client(), Client()
    hub.join({topic: two}, 0.0)
    hub.receive(frame(topic, 6), 0.0)
    # A client that subscribes again has received this frame already, so its values may not go back.
    hub.leave(topic, one)
    hub.join({topic: again}, 0.0)
    hub.answer(state(2, topic, 5, body={"seq": 5}), 0.0)
    hub.answer(state(3, topic, 6, body={"seq": 6}), 0.0)
    assert (len(wire.asked), two.got, again.got) == (3, [5, 6], [6])


def test_gap_in_a_quote_is_counted_and_the_newer_tick_delivered() -> None:
    hub, wire, client = joined(seq=5)
    hub.receive(frame(TICK, 8), 0.0)
    assert client.got == [8]
    assert (hub.gaps, hub.lost) == (1, 2)
    assert len(wire.asked) == 1


def test_gap_in_a_market_is_repaired_by_a_new_snapshot() -> None:
    hub, wire, client = joined(SH, 5)
    hub.receive(frame(SH, 7), 0.0)
    hub.receive(frame(SH, 8), 0.0)
    assert client.got == []
    assert wire.asked[-1] == ([SH], None)
    hub.answer(state(2, SH, 7, body={"seq": 7}), 0.0)
    hub.receive(frame(SH, 9), 0.0)
    assert client.got == [7, 8, 9]
    assert (hub.gaps, hub.lost, hub.received) == (1, 1, 3)


def test_gap_in_trade_events_is_replayed_without_duplicates() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 6), 0.0)
    hub.receive(frame(TRADE, 9), 0.0)
    hub.receive(frame(TRADE, 10), 0.0)
    assert client.got == [6]
    assert wire.asked[-1] == ([ALL_TRADES], 6)
    hub.answer(state(2, ALL_TRADES, 8, body=[{"seq": 7}, {"seq": 8}], more=True), 0.0)
    # The rest is asked for once the member was sent this chunk.
    for number in range(1, 5):
        hub.expire(number * ANSWER_TIMEOUT)
    assert (client.got, len(wire.asked)) == ([6, 7, 8], 2)
    client.acts.pop()(5.0)
    assert wire.asked[-1] == ([ALL_TRADES], 8)
    hub.answer(state(3, ALL_TRADES, 10, body=[{"seq": 9}, {"seq": 10}]), 0.0)
    hub.receive(frame(TRADE, 11), 0.0)
    assert client.got == [6, 7, 8, 9, 10, 11]
    # Called once at the start and once for the whole replay.
    assert client.outcomes == [("live", None)] * 2


def test_lost_beginning_of_a_chunk_is_asked_for_again() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 9), 0.0)
    hub.answer(state(2, ALL_TRADES, 7, body=[{"seq": 4}, {"seq": 5}, {"seq": 6}, {"seq": 7}], more=True), 0.0)
    client.acts.pop()(0.0)
    # The event 8 was lost on the way.
    hub.answer(state(3, ALL_TRADES, 9, body=[{"seq": 9}]), 0.0)
    assert wire.asked[2:] == [([ALL_TRADES], 7)] * 2
    assert client.got == [6, 7]
    hub.answer(state(4, ALL_TRADES, 9, body=[{"seq": 8}, {"seq": 9}]), 0.0)
    hub.receive(frame(TRADE, 10), 0.0)
    assert client.got == [6, 7, 8, 9, 10]


def test_answer_that_ends_before_the_stream_position_is_continued() -> None:
    hub, wire, _ = joined(ALL_TRADES, 10)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0, after=JournalPosition(5))
    hub.answer(state(2, ALL_TRADES, 8, body=[{"seq": 6}, {"seq": 7}, {"seq": 8}]), 0.0)
    assert wire.asked[-1] == ([ALL_TRADES], 8)
    hub.answer(state(3, ALL_TRADES, 10, body=[{"seq": 9}, {"seq": 10}]), 0.0)
    hub.receive(frame(TRADE, 11), 0.0)
    assert late.got == [6, 7, 8, 9, 10, 11]


def test_event_lost_while_a_joiner_waits_is_replayed() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({ALL_TRADES: client}, 0.0)
    hub.receive(frame(TRADE, 7), 0.0)
    hub.answer(state(1, ALL_TRADES, 5), 0.0)
    assert wire.asked[-1] == ([ALL_TRADES], 5)
    hub.answer(state(2, ALL_TRADES, 7, body=[{"seq": 6}, {"seq": 7}]), 0.0)
    assert (client.got, client.outcomes) == ([6, 7], [("live", None)])


def test_joiner_shares_no_question_with_a_draining_member() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({ALL_TRADES: one}, 0.0, after=JournalPosition(2))
    hub.answer(state(1, ALL_TRADES, 3, body=[{"seq": 3}], more=True), 0.0)
    hub.join({ALL_TRADES: two}, 0.0, after=JournalPosition(3))
    assert wire.asked[1:] == [([ALL_TRADES], 3)]
    hub.answer(state(2, ALL_TRADES, 4, body=[{"seq": 4}]), 0.0)
    assert (two.got, two.outcomes) == ([4], [("live", None)])
    one.acts.pop()(0.0)
    hub.answer(state(3, ALL_TRADES, 4, body=[{"seq": 4}]), 0.0)
    assert one.got == [3, 4]


def test_joiner_without_a_position_shares_no_draining_question() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.feeder_seen(EPOCH, 3, 0.0)
    hub.join({ALL_TRADES: one}, 0.0, JournalPosition(2))
    hub.answer(state(1, ALL_TRADES, 3, body=[{"seq": 3}], more=True), 0.0)
    hub.join({ALL_TRADES: two}, 0.0)
    assert (wire.asked[1:], wire.epochs[1:]) == ([([ALL_TRADES], 3)], [(EPOCH, True)])
    hub.answer(state(2, ALL_TRADES, 4, body=[{"seq": 4}]), 0.0)
    assert (two.got, two.outcomes) == ([4], [("live", None)])


def test_nothing_is_asked_for_a_draining_member_that_left() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0, after=JournalPosition(2))
    hub.answer(state(2, ALL_TRADES, 3, body=[{"seq": 3}], more=True), 0.0)
    hub.leave(ALL_TRADES, late)
    late.acts.pop()(0.0)
    assert len(wire.asked) == 2
    hub.receive(frame(TRADE, 6), 0.0)
    assert (late.got, client.got) == ([3], [6])


def test_unanswered_replay_is_asked_for_again_each_time() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 8), 0.0)
    hub.expire(ANSWER_TIMEOUT)
    hub.expire(2 * ANSWER_TIMEOUT)
    assert wire.asked[1:] == [([ALL_TRADES], 5)] * 3
    assert client.got == []
    hub.answer(state(4, ALL_TRADES, 8, body=[{"seq": 6}, {"seq": 7}, {"seq": 8}]), 2.0)
    assert client.got == [6, 7, 8]


def test_heartbeat_asks_nothing_after_a_late_answer() -> None:
    hub, wire, _ = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 7), 0.0)
    hub.expire(ANSWER_TIMEOUT)
    hub.answer(state(3, ALL_TRADES, 7, body=[{"seq": 6}, {"seq": 7}]), 1.5)
    hub.feeder_seen(EPOCH, 7, 2.0)
    assert wire.asked[1:] == [([ALL_TRADES], 5)] * 2


def test_lost_newest_event_shows_in_the_second_heartbeat() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 6), 0.0)
    hub.feeder_seen(EPOCH, 7, 0.0)
    asked = len(wire.asked)
    assert len(wire.asked) == asked
    hub.feeder_seen(EPOCH, 7, 1.0)
    assert wire.asked[asked:] == [([ALL_TRADES], 6)]
    assert (hub.gaps, hub.lost) == (1, 1)
    hub.answer(state(len(wire.asked), ALL_TRADES, 7, body=[{"seq": 7}]), 1.0)
    assert client.got == [6, 7]


def test_trade_events_continue_after_a_restart_of_the_feeder() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 6, epoch=EPOCH + 1), 0.0)
    # The new epoch may have another journal.
    assert client.got == []
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 5), (EPOCH, True))
    hub.answer(state(2, ALL_TRADES, 6, epoch=EPOCH + 1, body=[{"seq": 6}]), 0.0)
    hub.feeder_seen(EPOCH + 2, 8, 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 6), (EPOCH + 1, True))
    hub.answer(state(3, ALL_TRADES, 8, epoch=EPOCH + 2, body=[{"seq": 7}, {"seq": 8}]), 0.0)
    assert client.got == [6, 7, 8]


def test_answer_of_an_older_epoch_is_asked_for_again() -> None:
    hub, _, _ = joined(ALL_TRADES, 5)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0, JournalPosition(3))
    hub.receive(frame(TRADE, 6, epoch=EPOCH + 1), 0.0)
    hub.answer(state(2, ALL_TRADES, 5, body=[{"seq": 4}, {"seq": 5}]), 0.0)
    assert late.got == []
    hub.answer(state(4, ALL_TRADES, 6, epoch=EPOCH + 1, body=[{"seq": seq} for seq in (4, 5, 6)]), 1.0)
    assert late.got == [4, 5, 6]


def test_answer_older_than_the_heartbeat_epoch_is_asked_for_again() -> None:
    hub, wire, _ = joined(ALL_TRADES, 5)
    hub.feeder_seen(EPOCH, 5, 0.0)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0, JournalPosition(3))
    hub.feeder_seen(EPOCH + 1, 5, 0.0)
    hub.answer(state(2, ALL_TRADES, 5, body=[{"seq": 4}, {"seq": 5}]), 0.0)
    assert late.got == []
    assert [after for _, after in wire.asked[1:]] == [3, 5, 3]


def test_event_of_an_older_epoch_is_dropped() -> None:
    hub, _, client = joined(ALL_TRADES, 5)
    hub.feeder_seen(EPOCH, 5, 0.0)
    hub.feeder_seen(EPOCH + 1, 5, 0.0)
    hub.answer(state(2, ALL_TRADES, 5, epoch=EPOCH + 1, body=[]), 0.0)
    hub.receive(frame(TRADE, 6, epoch=EPOCH), 0.0)
    hub.receive(frame(TRADE, 6, epoch=EPOCH + 1, body="next"), 0.0)
    assert client.bodies == ["next"]


def refused(ask: int, oldest: int, newest: int) -> TopicState:
    error, epoch = f"only those after {oldest} to {newest}", EPOCH + 1
    return TopicState(ask, ALL_TRADES, "refused", error, "resume_expired", epoch, newest, oldest=oldest)


def test_event_of_a_new_epoch_is_held_until_the_journal_answers() -> None:
    hub, wire, client = joined(ALL_TRADES, 500)
    # Event 1 of the other journal was lost on the way.
    hub.receive(frame(TRADE, 2, epoch=EPOCH + 1), 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 500), (EPOCH, True))
    hub.answer(refused(2, 0, 2), 0.0)
    assert client.refusal == Refusal("resume_expired", "only those after 0 to 2", 0, 2, EPOCH + 1)
    assert (client.outcomes[-1], client.got) == (("refused", "resume_expired"), [])
    hub.join({ALL_TRADES: client}, 0.0, JournalPosition(0))
    hub.answer(state(3, ALL_TRADES, 2, epoch=EPOCH + 1, body=[{"seq": 1}, {"seq": 2}]), 0.0)
    hub.receive(frame(TRADE, 3, epoch=EPOCH + 1), 0.0)
    assert client.got == [1, 2, 3]


@pytest.mark.parametrize("came", [[], [6], [4, 5, 6]], ids=["nothing", "a-later-one", "all"])
def test_new_epoch_is_asked_for_the_old_epochs_position(came: list[int]) -> None:
    hub, wire, client = joined(ALL_TRADES, 2)
    hub.feeder_seen(EPOCH, 2, 0.0)
    for seq in (3, 4, 5):
        hub.receive(frame(TRADE, seq), 0.0)
    # The new epoch has another journal. Its events may arrive, in part or not at all.
    for seq in came:
        hub.receive(frame(TRADE, seq, epoch=EPOCH + 1), 0.0)
    hub.feeder_seen(EPOCH + 1, 6, 1.0)
    assert (wire.asked[1:], wire.epochs[1:]) == ([([ALL_TRADES], 5)], [(EPOCH, True)])
    late = Client()
    hub.join({ALL_TRADES: late}, 1.0)
    hub.answer(refused(2, 0, 6), 1.0)
    assert client.outcomes[-1] == ("refused", "resume_expired")
    assert client.got == [3, 4, 5]
    hub.receive(frame(TRADE, 7, epoch=EPOCH + 1), 1.0)
    # A member that joined meanwhile is live at the position of the stream, or waits for an answer.
    body = [{"seq": seq} for seq in range((wire.asked[-1][1] or 0) + 1, 8)]
    hub.answer(state(len(wire.asked), ALL_TRADES, 7, epoch=EPOCH + 1, body=body), 1.0)
    assert late.got[-1] == 7


def test_member_at_the_new_epoch_is_not_refused_with_others() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    hub.feeder_seen(EPOCH, 5, 0.0)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0, after=JournalPosition(3))
    hub.answer(state(2, ALL_TRADES, 6, epoch=EPOCH + 1, body=[{"seq": n} for n in (4, 5, 6)]), 0.0)
    hub.feeder_seen(EPOCH + 1, 6, 1.0)
    assert [after for _, after in wire.asked[2:]] == [5, 6]
    assert wire.epochs[2:] == [(EPOCH, True), (EPOCH + 1, True)]
    hub.answer(refused(3, 0, 6), 1.0)
    hub.answer(state(4, ALL_TRADES, 7, epoch=EPOCH + 1, body=[{"seq": 7}]), 1.0)
    assert client.outcomes[-1] == ("refused", "resume_expired")
    assert (late.outcomes, late.got) == ([("live", None)] * 2, [4, 5, 6, 7])


def test_position_after_a_chunk_has_the_epoch_of_the_chunk() -> None:
    hub, wire, _ = joined(ALL_TRADES, 500)
    slow = Client()
    hub.join({ALL_TRADES: slow}, 0.0, JournalPosition(450, EPOCH - 1))
    # A position that a client names is never exact.
    assert wire.epochs[-1] == (EPOCH - 1, False)
    hub.answer(state(2, ALL_TRADES, 451, body=[{"seq": 451}], more=True), 0.0)
    slow.acts.pop()(0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 451), (EPOCH, True))
    hub.answer(refused(3, 0, 400), 0.0)
    assert slow.outcomes[-1] == ("refused", "resume_expired")


def test_every_question_names_the_epoch_of_its_position() -> None:
    # The position comes from a heartbeat of the new epoch.
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.feeder_seen(EPOCH, 8, 0.0)
    hub.feeder_seen(EPOCH + 1, 8, 0.0)
    hub.join({ALL_TRADES: client}, 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 8), (EPOCH + 1, True))
    # The position comes from an answer, before a gap to the frame that is held.
    hub.receive(frame(TRADE, 12, epoch=EPOCH + 1), 0.0)
    hub.answer(state(1, ALL_TRADES, 9, epoch=EPOCH + 1, body=[{"seq": 9}]), 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 9), (EPOCH + 1, True))
    # The same if the client named an older epoch.
    other = Client()
    hub.join({ALL_TRADES: other}, 0.0, JournalPosition(8, EPOCH))
    hub.answer(state(3, ALL_TRADES, 9, epoch=EPOCH + 1, body=[{"seq": 9}]), 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 9), (EPOCH + 1, True))


@pytest.mark.parametrize("answered", [False, True])
def test_position_found_by_the_hub_keeps_its_epoch(answered: bool) -> None:
    wire = Wire()
    hub = Hub(wire)
    hub.join({ALL_TRADES: Client()}, 0.0)
    for seq in (4, 6):
        hub.receive(frame(TRADE, seq), 0.0)
    if answered:
        hub.answer(state(1, ALL_TRADES, 3), 0.0)
    else:
        hub.expire(ANSWER_TIMEOUT)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 3), (EPOCH, True))


def test_member_ahead_gets_a_new_epochs_events_by_answer_only() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    # The stream has no position, because another member waits.
    hub.join({ALL_TRADES: Client()}, 0.0)
    hub.join({ALL_TRADES: client}, 0.0, JournalPosition(3))
    hub.answer(state(2, ALL_TRADES, 4, body=[{"seq": 4}]), 0.0)
    hub.receive(frame(TRADE, 5, epoch=EPOCH + 1), 0.0)
    assert client.got == [4]
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 4), (EPOCH, True))


def test_lost_newest_event_is_repaired_for_members_ahead() -> None:
    wire, clients = Wire(), [Client(), Client()]
    hub = Hub(wire)
    hub.join({ALL_TRADES: Client()}, 0.0)
    hub.feeder_seen(EPOCH, 10, 0.0)
    for client, after in zip(clients, (10, 9), strict=True):
        hub.join({ALL_TRADES: client}, 0.0, JournalPosition(after))
    hub.answer(state(1, ALL_TRADES, 10), 0.0)
    hub.answer(state(2, ALL_TRADES, 10, body=[]), 0.0)
    hub.answer(state(3, ALL_TRADES, 10, body=[{"seq": 10}]), 0.0)
    hub.feeder_seen(EPOCH, 11, 0.0)
    asked = len(wire.asked)
    hub.feeder_seen(EPOCH, 11, 1.0)
    assert (wire.asked[asked:], hub.gaps) == ([([ALL_TRADES], 10)], 1)
    hub.answer(state(asked + 1, ALL_TRADES, 11, body=[{"seq": 11}]), 1.0)
    assert [client.got for client in clients] == [[11], [10, 11]]


def test_same_position_of_another_epoch_is_another_question() -> None:
    hub, wire, _ = joined(ALL_TRADES, 500)
    for epoch in (None, EPOCH - 1, EPOCH, EPOCH):
        hub.join({ALL_TRADES: Client()}, 0.0, JournalPosition(450, epoch))
    assert wire.epochs[1:] == [(None, False), (EPOCH - 1, False), (EPOCH, False)]


@pytest.mark.parametrize("code", ["resume_expired", "internal"])
def test_refused_position_removes_only_its_members(code: ErrorCode) -> None:
    hub, _, client = joined(ALL_TRADES, 500)
    old = Client()
    hub.join({ALL_TRADES: old}, 0.0, after=JournalPosition(3))
    hub.answer(TopicState(2, ALL_TRADES, "refused", "not there", code, EPOCH, 500, oldest=400), 0.0)
    hub.receive(frame(TRADE, 501), 0.0)
    assert old.outcomes == [("refused", code)]
    assert old.refusal == Refusal(code, "not there", 400, 500, EPOCH)
    assert (old.got, client.got) == ([], [501])


def test_joiner_of_live_trade_events_is_live_at_once() -> None:
    hub, wire, _ = joined(ALL_TRADES, 5)
    late = Client()
    hub.join({ALL_TRADES: late}, 0.0)
    assert late.outcomes == [("live", None)]
    assert len(wire.asked) == 1
    # Event 6 was lost on the way.
    hub.receive(frame(TRADE, 7), 0.0)
    assert wire.asked[-1] == ([ALL_TRADES], 5)
    hub.answer(state(2, ALL_TRADES, 7, body=[{"seq": 6}, {"seq": 7}]), 0.0)
    assert late.got == [6, 7]


def test_early_joiner_gets_all_events_after_the_first_heartbeat() -> None:
    wire, client = Wire(), Client()
    wire.away = True
    hub = Hub(wire)
    hub.join({ALL_TRADES: client}, 0.0)
    wire.away = False
    hub.feeder_seen(EPOCH, 8, 1.0)
    assert wire.asked[-1] == ([ALL_TRADES], 8)
    late = Client()
    hub.join({ALL_TRADES: late}, 1.0)
    hub.answer(state(2, ALL_TRADES, 9, body=[{"seq": 9}]), 1.0)
    assert client.got == late.got == [9]


def test_gap_between_held_events_is_replayed_without_an_answer() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({ALL_TRADES: client}, 0.0)
    for seq in (4, 6):
        hub.receive(frame(TRADE, seq), 0.0)
    hub.expire(ANSWER_TIMEOUT)
    assert wire.asked[-1] == ([ALL_TRADES], 3)
    hub.answer(state(2, ALL_TRADES, 6, body=[{"seq": 4}, {"seq": 5}, {"seq": 6}]), 1.0)
    assert client.got == [4, 5, 6]


def test_lost_first_event_of_the_journal_is_replayed() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({ALL_TRADES: client}, 0.0, JournalPosition(0))
    hub.receive(frame(TRADE, 2), 0.0)
    hub.answer(state(1, ALL_TRADES, 0, body=[]), 0.0)
    assert (client.got, wire.asked[-1]) == ([], ([ALL_TRADES], 0))
    hub.answer(state(2, ALL_TRADES, 2, body=[{"seq": 1}, {"seq": 2}]), 0.0)
    assert client.got == [1, 2]


def test_new_epoch_brings_its_last_value() -> None:
    hub, wire, client = joined(seq=5)
    hub.receive(frame(TICK, 2, epoch=EPOCH + 1), 0.0)
    assert wire.asked[-1] == ([TICK], None)
    hub.answer(state(2, TICK, 2, epoch=EPOCH + 1, body={"seq": 2}), 0.0)
    hub.receive(frame(TICK, 3, epoch=EPOCH + 1), 0.0)
    assert client.got == [2, 3]


def test_heartbeat_of_a_new_epoch_asks_for_every_topic_once() -> None:
    hub, wire, _ = joined(seq=5)
    hub.feeder_seen(EPOCH + 1, 0, 0.0)
    hub.answer(state(2, TICK, 0, epoch=EPOCH + 1), 0.0)
    hub.feeder_seen(EPOCH + 1, 0, 1.0)
    assert len(wire.asked) == 2


def test_new_epoch_is_one_question_for_all_topics_and_members() -> None:
    hub, wire, _ = joined(seq=5)
    for number in (2, 3):
        hub.join({TICK: Client(), SH: Client()}, 0.0)
        for topic in (TICK, SH):
            hub.answer(state(number, topic, 5, body={"seq": 5}), 0.0)
    hub.feeder_seen(EPOCH, 0, 0.0)
    hub.feeder_seen(EPOCH + 1, 0, 1.0)
    assert wire.asked[3:] == [([TICK, SH], None)]


def test_older_epoch_after_a_clock_set_back_is_followed() -> None:
    hub, wire, client = joined(seq=5)
    hub.feeder_seen(EPOCH, 0, 0.0)
    early = EPOCH - 1
    hub.receive(frame(TICK, 1, epoch=early), 1.0)
    hub.feeder_seen(early, 0, 1.0)
    hub.answer(state(2, TICK, 1, epoch=early, body={"seq": 1}), 1.0)
    # Only the second heartbeat shows that the first was not a late one of an older process.
    assert client.got == []
    hub.receive(frame(TICK, 2, epoch=early), 2.0)
    hub.feeder_seen(early, 0, 2.0)
    assert wire.asked[2:] == [([TICK], None)]
    hub.answer(state(3, TICK, 2, epoch=early, body={"seq": 2}), 2.0)
    hub.receive(frame(TICK, 3, epoch=early), 2.0)
    hub.feeder_seen(early, 0, 3.0)
    hub.receive(frame(TICK, 4, epoch=early), 3.0)
    assert client.got == [2, 3, 4]
    assert len(wire.asked) == 3


def test_joiners_after_a_clock_set_back_get_no_held_frames() -> None:
    hub, wire, client = joined(seq=5)
    hub.feeder_seen(EPOCH, 0, 0.0)
    joiner = Client()
    hub.join({TICK: joiner}, 0.0)
    hub.receive(frame(TICK, 6), 0.0)
    for _ in range(2):
        hub.feeder_seen(EPOCH - 1, 0, 0.5)
    assert len(wire.asked) == 3
    for number in (2, 3):
        hub.answer(state(number, TICK, 2, epoch=EPOCH - 1, body={"seq": 2}), 0.5)
    hub.receive(frame(TICK, 3, epoch=EPOCH - 1), 0.5)
    assert (client.got, joiner.got) == ([6, 2, 3], [2, 3])


def test_late_heartbeat_of_an_older_epoch_repeats_no_event() -> None:
    hub, wire, client = joined(seq=5)
    for epoch in (EPOCH, EPOCH - 1, EPOCH, EPOCH):
        hub.feeder_seen(epoch, 0, 1.0)
        if len(wire.asked) > 1:
            hub.answer(state(len(wire.asked), TICK, 5, body={"seq": 5}), 1.0)
    hub.receive(frame(TICK, 6), 1.0)
    assert client.got == [6]


def test_members_can_read_another_journal_after_a_clock_set_back() -> None:
    hub, wire, client = joined(ALL_TRADES, 5)
    early = EPOCH - 1
    for epoch in (EPOCH, early):
        hub.feeder_seen(epoch, 8, 0.0)
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 5), (EPOCH, True))
    # A member without an epoch, so that the stream does not end with the refused member.
    other = Client()
    hub.join({ALL_TRADES: other}, 0.0, JournalPosition(7))
    hub.answer(TopicState(2, ALL_TRADES, "refused", "of another", "resume_expired", early, 8), 0.0)
    assert client.outcomes[-1] == ("refused", "resume_expired")
    hub.join({ALL_TRADES: client}, 0.0, JournalPosition(8, early))
    for number, body in ((3, [{"seq": 8}]), (4, [])):
        hub.answer(state(number, ALL_TRADES, 8, epoch=early, body=body), 0.0)
    hub.receive(frame(TRADE, 9, epoch=early), 1.0)
    assert (other.got, client.got) == ([8, 9], [9])


def test_older_epoch_that_answers_twice_is_followed() -> None:
    hub, wire, client = joined(ALL_TRADES, 9)
    early = EPOCH - 1
    other = Client()
    hub.join({ALL_TRADES: other}, 0.0, JournalPosition(7))
    for number in (2, 3):
        assert wire.asked[-1] == ([ALL_TRADES], 7)
        hub.answer(state(number, ALL_TRADES, 8, epoch=early, body=[{"seq": 8}]), 0.0)
    # The feeder has to answer whether its journal has the position of the other member.
    assert (wire.asked[-1], wire.epochs[-1]) == (([ALL_TRADES], 9), (EPOCH, True))
    hub.receive(frame(TRADE, 9, epoch=early), 0.0)
    assert (other.got, client.got) == ([8, 9], [])


def test_frame_published_before_the_subscription_is_noticed() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.receive(frame(SH, 7), 0.0)
    hub.answer(state(1, SH, 5, body={"seq": 5}), 0.0)
    assert client.got == []
    hub.answer(state(2, SH, 7, body={"seq": 7}), 0.0)
    assert client.got == [7]
    assert (hub.gaps, hub.lost) == (1, 1)


def test_unanswered_joiner_goes_live_with_held_frames() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.receive(frame(TICK, 3), 0.5)
    hub.expire(ANSWER_TIMEOUT - 0.01)
    assert client.got == []
    hub.expire(ANSWER_TIMEOUT)
    hub.receive(frame(TICK, 4), 1.1)
    hub.expire(2 * ANSWER_TIMEOUT)
    assert client.outcomes == [("unanswered", None)]
    assert client.got == [3, 4]
    assert hub.received == 2
    # The next heartbeat makes the hub ask again; after the answer it does not.
    hub.feeder_seen(EPOCH, 0, 2.0)
    assert len(wire.asked) == 2
    hub.answer(state(2, TICK, 4, body={"seq": 4}), 2.0)
    hub.feeder_seen(EPOCH, 0, 3.0)
    assert len(wire.asked) == 2


def test_timeout_of_an_answer_starts_anew_with_each_part() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 10.0)
    hub.answer(state(1, SH, 9, body={"a": 1}, more=True), 10.9)
    hub.expire(11.5)
    assert client.outcomes == []
    hub.answer(state(1, SH, 9, body={"b": 2}), 11.6)
    assert client.outcomes == [("live", None)]
    assert client.bodies == [{"a": 1}, {"b": 2}]


def test_held_frames_are_delivered_once_when_more_members_join() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({TICK: one}, 0.0)
    hub.receive(frame(TICK, 6), 0.0)
    hub.answer(state(1, TICK, 5, body={"seq": 5}), 0.0)
    hub.receive(frame(TICK, 7), 0.0)
    hub.join({TICK: two}, 0.0)
    hub.receive(frame(TICK, 8), 0.0)
    hub.answer(state(2, TICK, 7, body={"seq": 7}), 0.0)
    assert one.got == [5, 6, 7, 8]
    assert two.got == [7, 8]


def test_late_joiner_ahead_of_its_stream_becomes_live() -> None:
    hub, _, old = joined(seq=5)
    late = Client()
    hub.join({TICK: late}, 0.0)
    hub.answer(state(2, TICK, 6, body={"seq": 6}), 0.0)
    hub.receive(frame(TICK, 6), 0.0)
    assert not hub.streams[TICK].ahead
    hub.leave(TICK, old)
    hub.receive(frame(TICK, 7), 0.0)
    assert late.got == [6, 7]


def test_feeder_is_asked_when_it_starts_later() -> None:
    wire, client = Wire(), Client()
    wire.away = True
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    assert client.outcomes == [("unanswered", None)]
    wire.away = False
    hub.feeder_seen(EPOCH, 0, 5.0)
    hub.answer(state(2, TICK, 1, body={"seq": 1}), 5.0)
    assert client.got == [1]


def test_refusal_reaches_every_member_and_unsubscribes() -> None:
    hub, wire, client = joined(seq=0)
    late = Client()
    hub.join({TICK: late}, 0.0)
    hub.answer(TopicState(2, TICK, "refused", "no such code", "unknown_symbol"), 0.0)
    assert client.outcomes[-1] == late.outcomes[-1] == ("refused", "unknown_symbol")
    assert wire.subscribed == []


def test_pending_topic_is_probed_until_the_source_decides() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 0, kind="pending"), 0.8)
    assert client.outcomes == [("pending", None)]
    hub.expire(1.0)
    assert len(wire.asked) == 1
    hub.expire(1.8)
    assert len(wire.asked) == 2
    hub.answer(TopicState(2, TICK, "refused", "not entitled", "not_entitled"), 1.9)
    assert client.outcomes[-1] == ("refused", "not_entitled")
    assert wire.subscribed == []


def test_pending_topic_that_goes_live_gets_its_last_value() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 0, kind="pending"), 0.8)
    hub.expire(1.8)
    hub.answer(state(2, TICK, 0, kind="pending"), 1.9)
    hub.expire(3.0)
    hub.answer(state(3, TICK, 1, body={"seq": 1}), 3.1)
    assert wire.asked[3:] == [([TICK], None)]
    hub.answer(state(4, TICK, 1, body={"seq": 1}), 3.1)
    hub.expire(9.0)
    assert client.got == [1]
    assert len(wire.asked) == 4


def test_pending_topic_is_not_probed_after_its_first_frame() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 0, kind="pending"), 0.8)
    hub.receive(frame(TICK, 1), 0.9)
    hub.expire(9.0)
    assert client.got == [1]
    assert len(wire.asked) == 1


@pytest.mark.parametrize(("first", "lost"), [(8, 0), (10, 2)])
def test_first_frame_after_a_pending_answer_shows_what_is_lost(first: int, lost: int) -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 7, kind="pending"), 0.8)
    hub.receive(frame(TICK, first), 0.9)
    hub.expire(9.0)
    assert (client.got, client.lost, len(wire.asked)) == ([first], lost, 1)


def test_pending_topic_with_a_number_gets_its_last_value() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.answer(state(1, TICK, 7, kind="pending"), 0.8)
    hub.expire(1.8)
    hub.answer(state(2, TICK, 8, body={"seq": 8}), 1.9)
    hub.answer(state(3, TICK, 8, body={"seq": 8}), 1.9)
    assert (client.got, client.lost) == ([8], 0)


def test_pending_answer_after_a_frame_is_not_probed() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.receive(frame(TICK, 1), 0.1)
    hub.answer(state(1, TICK, 0, kind="pending"), 0.2)
    hub.expire(1.8)
    assert (client.got, len(wire.asked)) == ([1], 1)


def test_new_epoch_is_handled_at_its_first_heartbeat_only() -> None:
    hub, wire, client = joined(seq=5)
    hub.feeder_seen(EPOCH, 0, 0.0)
    assert len(wire.asked) == 1
    hub.feeder_seen(EPOCH + 1, 0, 1.0)
    hub.feeder_seen(EPOCH + 1, 0, 2.0)
    assert len(wire.asked) == 2
    hub.receive(frame(TICK, 1, epoch=EPOCH + 1), 2.0)
    hub.answer(state(2, TICK, 1, epoch=EPOCH + 1, body={"seq": 1}), 2.0)
    assert client.got == [1]


def test_recheck_removes_members_of_refused_topics() -> None:
    hub, _, client = joined(seq=5)
    hub.recheck(1.0)
    hub.answer(TopicState(2, TICK, "refused", "gone", "upstream_refused"), 1.0)
    assert client.outcomes[-1] == ("refused", "upstream_refused")


def test_member_that_leaves_while_joining_gets_nothing() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({TICK: client}, 0.0)
    hub.leave(TICK, client)
    hub.answer(state(1, TICK, 5, body={"seq": 5}), 0.0)
    hub.receive(frame(TICK, 6), 0.0)
    assert client.got == []
    assert wire.subscribed == []


def test_quiet_topic_is_compared_with_the_feeder() -> None:
    hub, wire, client = joined(seq=5)
    other = Client()
    hub.join({SH: other}, 0.0)
    hub.answer(state(2, SH, 3, body={"a": 3}), 0.0)
    for seq in range(6, 16):
        hub.receive(frame(TICK, seq), seq / 2)
        hub.expire(seq / 2)
        # A value that is not newer is not delivered.
        hub.answer(state(3, SH, 3, body={"a": 3}), seq / 2)
    assert wire.asked[2:] == [([SH], None)]
    assert (other.got, other.lost, hub.lost) == ([3], 0, 0)
    asked = []
    for second in range(10, 70):
        hub.expire(second)
        if len(wire.asked) > 3 + len(asked):
            asked.append((second, *wire.asked[-1][0]))
            # A message was lost, and no later one showed the gap.
            for topic, seq in ((SH, 5), (TICK, 15)):
                hub.answer(state(len(wire.asked), topic, seq, body={"a": seq}), second)
    assert asked == [(14, TICK), (67, SH)]
    assert (other.got, other.lost) == ([3, 5], 1)
    hub.receive(frame(TICK, 16), 70.0)
    hub.receive(frame(SH, 6), 70.0)
    assert (client.got, other.got) == (list(range(6, 17)), [3, 5, 6])


def test_gap_before_the_first_event_of_a_stream_is_replayed() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    for client, after in ((one, 5), (two, 6)):
        hub.join({ALL_TRADES: client}, 0.0, JournalPosition(after))
    hub.answer(state(1, ALL_TRADES, 7, body=[{"seq": 6}, {"seq": 7}]), 0.0)
    hub.answer(state(2, ALL_TRADES, 7, body=[{"seq": 7}]), 0.0)
    # 8 and 9 were lost on the way.
    hub.receive(frame(TRADE, 10), 0.0)
    assert (one.got, two.got) == ([6, 7], [7])
    assert wire.asked[2:] == [([ALL_TRADES], 7)]
    hub.answer(state(3, ALL_TRADES, 10, body=[{"seq": 8}, {"seq": 9}, {"seq": 10}]), 0.0)
    hub.receive(frame(TRADE, 11), 0.0)
    assert (one.got, two.got) == ([6, 7, 8, 9, 10, 11], [7, 8, 9, 10, 11])


def test_quiet_trade_events_are_not_compared() -> None:
    hub, wire, _ = joined(ALL_TRADES, 5)
    for number in range(10):
        hub.expire(number * COMPARE_SECONDS)
    assert len(wire.asked) == 1


def test_members_are_told_only_of_unrepaired_losses() -> None:
    hub, _, client = joined(seq=5)
    hub.receive(frame(TICK, 8), 0.0)
    assert client.lost == 2
    hub, _, client = joined(ALL_TRADES, 5)
    hub.receive(frame(TRADE, 8), 0.0)
    assert client.lost == 0


def test_joiner_shares_no_question_of_earlier_members() -> None:
    class Choosy(Client):
        def starts(self, epoch: int, seq: int) -> bool:
            self.asked = (epoch, seq)
            return False

    hub, wire, client = joined(seq=5)
    hub.recheck(1.0)
    choosy = Choosy()
    plain = Client()
    hub.join({TICK: choosy}, 1.0)
    hub.join({TICK: plain}, 1.0)
    # The value is not newer for the earlier member, but it is for the new one.
    assert len(wire.asked) == 3
    for ask in (2, 3):
        hub.answer(state(ask, TICK, 5, body={"seq": 5}), 1.0)
    assert (client.got, choosy.got, plain.got) == ([], [], [5])
    assert choosy.asked == (EPOCH, 5)
    hub.receive(frame(TICK, 6), 1.0)
    assert (client.got, choosy.got, plain.got) == ([6], [6], [5, 6])


def test_members_but_not_joiners_are_told_of_replaced_values() -> None:
    hub, _, client = joined(SH, 5)
    hub.receive(frame(SH, 9), 0.0)
    late = Client()
    hub.join({SH: late}, 0.0)
    for ask in (2, 3):
        hub.answer(state(ask, SH, 9, body={"seq": 9}), 0.0)
    assert (client.got, client.lost) == ([9], 3)
    assert (late.got, late.lost) == ([9], 0)
    assert (hub.gaps, hub.lost) == (1, 3)


@pytest.mark.parametrize("topic", [TICK, SH])
def test_answer_replaces_no_messages_that_have_come(topic: Topic) -> None:
    hub, wire, client = joined(topic, 5)
    hub.recheck(1.0)
    for seq in (6, 7, 8, 9):
        hub.receive(frame(topic, seq), 1.0)
    assert client.got == []
    hub.answer(state(len(wire.asked), topic, 8, body={"seq": 8}), 1.0)
    assert client.got == [6, 7, 8, 9]
    # A member of a market may have had no snapshot before, which has the message too.
    assert client.ended[1:] == ([(3, 1)] if topic == SH else [])
    assert (client.lost, hub.gaps, hub.lost) == (0, 0, 0)
    hub.receive(frame(topic, 10), 1.0)
    assert client.got[-1] == 10


@pytest.mark.parametrize("come", [(), (6,), (6, 8), (7, 8)])
def test_answer_replaces_messages_that_have_not_all_come(come: tuple[int, ...]) -> None:
    hub, wire, client = joined(TICK, 5)
    hub.recheck(1.0)
    for seq in come:
        hub.receive(frame(TICK, seq), 1.0)
    hub.answer(state(len(wire.asked), TICK, 8, body={"seq": 8}), 1.0)
    assert (client.got, client.lost) == ([8], 2)


def test_new_member_begins_with_the_last_value() -> None:
    hub, wire, _ = joined(TICK, 0)
    late = Client()
    hub.join({TICK: late}, 1.0)
    for seq in (1, 2):
        hub.receive(frame(TICK, seq), 1.0)
    hub.answer(state(len(wire.asked), TICK, 2, body={"seq": 2}), 1.0)
    assert late.got == [2]


def test_members_are_told_of_a_loss_without_an_answer() -> None:
    hub, _wire, client = joined(SH, 5)
    hub.receive(frame(SH, 9), 0.0)
    hub.expire(ANSWER_TIMEOUT)
    assert (client.got, client.lost) == ([9], 3)


def pieces(ask: int, *counts: int, seq: int = 9, epoch: int = EPOCH) -> list[TopicState]:
    """Return the parts of a market's snapshot, with these numbers of codes."""
    codes = iter(range(sum(counts)))
    bodies = [{f"{next(codes):06}.SH": {"n": 1} for _ in range(count)} for count in counts]
    return [
        state(ask, SH, seq, body=body, epoch=epoch, more=number < len(bodies)) for number, body in enumerate(bodies, 1)
    ]


def test_snapshot_end_follows_the_last_piece() -> None:
    wire, one, two = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({SH: one}, 0.0)
    # The second member shares the question.
    hub.join({SH: two}, 0.0)
    hub.receive(frame(SH, 10), 0.0)
    for piece in pieces(1, 20, 17, 3):
        assert one.ended == []
        hub.answer(piece, 0.0)
    assert one.got == two.got == [9, 9, 9, 10]
    assert one.ended == two.ended == [(3, 40)]


def test_only_snapshots_have_an_end() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(*pieces(1, 2), now=0.0)
    # A gap is repaired by a snapshot.
    hub.receive(frame(SH, 11), 1.0)
    for piece in pieces(2, 3, 3, seq=11):
        hub.answer(piece, 1.0)
    assert client.ended == [(1, 2), (3, 6)]
    # The snapshot is not newer, so it is not delivered.
    hub.recheck(2.0)
    hub.answer(*pieces(3, 6, seq=11), now=2.0)
    assert client.ended == [(1, 2), (3, 6)]
    # The feeder has a new epoch.
    hub.feeder_seen(EPOCH, 0, 2.5)
    hub.feeder_seen(EPOCH + 1, 0, 3.0)
    hub.answer(*pieces(4, 7, seq=1, epoch=EPOCH + 1), now=3.0)
    assert client.ended == [(1, 2), (3, 6), (4, 7)]
    # A quote is sent in one part.
    other = Client()
    hub.join({TICK: other}, 4.0)
    hub.answer(state(len(wire.asked), TICK, 3, body={"600519.SH": [1]}), 4.0)
    assert (other.got, other.ended) == ([3], [])


@pytest.mark.parametrize("kind", ["live", "pending"])
def test_snapshot_pushed_as_frames_has_an_end(kind: str) -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(state(1, SH, 0, kind=kind), 0.0)
    assert client.ended == []
    for seq in (1, 2):
        hub.receive(frame(SH, seq), 0.5)
    hub.expire(1.5)
    # The feeder has published more frames than have arrived.
    for piece in pieces(2, 20, 20, seq=4):
        hub.answer(piece, 1.5)
    hub.receive(frame(SH, 3), 1.5)
    hub.expire(1.6)
    assert client.ended == []
    hub.receive(frame(SH, 4), 1.7)
    hub.expire(1.8)
    assert (client.got, client.ended) == ([1, 2, 3, 4], [(4, 40)])
    for second in range(3, 6):
        hub.expire(float(second))
    assert (len(wire.asked), len(client.ended)) == (2, 1)


def test_snapshot_end_comes_once_when_a_gap_is_repaired() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(state(1, SH, 0), 0.0)
    for seq in (1, 3):
        hub.receive(frame(SH, seq), 0.5)
    hub.answer(*pieces(2, 20, seq=3), now=0.6)
    hub.expire(1.5)
    assert (client.got, client.ended, len(wire.asked)) == ([1, 3], [(2, 20)], 2)


def test_empty_snapshot_has_an_end() -> None:
    wire, client, late = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(state(1, SH, 0), 0.0)
    hub.join({SH: late}, 0.1)
    hub.answer(state(2, SH, 0), 0.1)
    hub.expire(1.2)
    hub.answer(state(3, SH, 0), 1.2)
    assert client.ended == late.ended == [(0, 0)]


def test_pending_market_has_no_snapshot_end_yet() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(state(1, SH, 0, kind="pending"), 0.0)
    hub.expire(1.2)
    hub.answer(state(2, SH, 0, kind="pending"), 1.2)
    assert client.ended == []
    hub.expire(2.4)
    hub.answer(state(3, SH, 0), 2.4)
    # The hub asks until the source has decided, and then where the snapshot ends.
    while not client.ended:
        hub.answer(state(len(wire.asked), SH, 0), 2.4)
        hub.expire(len(wire.asked) + 2.0)
        assert len(wire.asked) < 10
    assert client.ended == [(0, 0)]


def test_pending_snapshot_end_is_dropped_with_epoch_and_member() -> None:
    wire, client, leaver = Wire(), Client(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.answer(state(1, SH, 0), 0.0)
    hub.join({SH: leaver}, 0.0)
    hub.answer(state(2, SH, 0), 0.0)
    hub.expire(1.2)
    hub.answer(*pieces(3, 5, seq=4), now=1.2)
    hub.leave(SH, leaver)
    # The frames up to 4 never arrive: the feeder has a new epoch, and no data yet.
    hub.feeder_seen(EPOCH, 0, 1.3)
    hub.feeder_seen(EPOCH + 1, 0, 1.4)
    hub.answer(state(4, SH, 0, epoch=EPOCH + 1), 1.4)
    hub.expire(1.5)
    assert client.ended == []
    hub.receive(frame(SH, 1, EPOCH + 1), 1.6)
    hub.expire(2.6)
    hub.answer(*pieces(5, 2, seq=1, epoch=EPOCH + 1), now=2.6)
    assert client.ended == [(1, 2)]
    assert leaver.ended == []


def test_member_that_left_is_not_referenced() -> None:
    hub, leaver = Hub(Wire()), Client()
    hub.join({SH: Client(), TICK: leaver}, 0.0)
    hub.join({SH: leaver}, 0.0)
    hub.answer(state(1, SH, 0), 0.0)
    for topic in (SH, TICK):
        hub.leave(topic, leaver)
    gone = weakref.ref(leaver)
    del leaver
    assert gone() is None


def test_unanswered_market_has_a_snapshot_end() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.expire(1.2)
    hub.receive(frame(SH, 1), 1.3)
    hub.expire(2.3)
    hub.answer(*pieces(2, 5, seq=1), now=2.3)
    assert (client.got, client.ended) == ([1], [(1, 5)])


def test_unanswered_market_with_earlier_frames_has_no_end() -> None:
    wire, client = Wire(), Client()
    hub = Hub(wire)
    hub.join({SH: client}, 0.0)
    hub.receive(frame(SH, 5), 0.1)
    for now in (1.0, 2.5):
        hub.expire(now)
    assert (client.got, client.ended, len(wire.asked)) == ([5], [], 1)


def test_member_without_a_snapshot_gets_no_snapshot_end() -> None:
    class NewsOnly(Client):
        def starts(self, epoch: int, seq: int) -> bool:
            return False

    client = NewsOnly()
    hub = Hub(Wire())
    hub.join({SH: client}, 0.0)
    hub.answer(*pieces(1, 5), now=0.0)
    hub.expire(9.0)
    assert (client.got, client.ended) == ([], [])
