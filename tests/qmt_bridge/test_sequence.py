"""What a consumer hands out and asks for while messages are lost. No sockets, no clock."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest

from qmt_bridge import sequence as sequence_module
from qmt_bridge.errors import Refused, WireError
from qmt_bridge.sequence import AGAIN_SECONDS, LATE_SECONDS, ROOM_BYTES, Events, LastValues, Sequence
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import CatchUp, TopicState
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, Topic, quote_topic, trade_topic, whole_topic

ACCOUNT = trade_topic("1")
QUOTE = quote_topic("600519.SH")
WHOLE = whole_topic("SH")
# The body of a last value, which the messages of these tests do not have.
VALUE = frames.encode({})
EPOCH, NEXT_EPOCH = 100, 200


def body(seq: int) -> bytes:
    return frames.encode({"type": "order", "seq": 1000 + seq, "data": {"number": seq}})


def live(seq: int, epoch: int = EPOCH, topic: Topic = ACCOUNT) -> Frame:
    return Frame(topic, epoch, seq, 1, 2, body(seq))


def answer(number: int, first: int, last: int, *, more: bool = False, epoch: int = EPOCH) -> TopicState:
    bodies = frames.encode([frames.decode(body(seq)) for seq in range(first, last + 1)])
    return TopicState(number, ACCOUNT, "live", epoch=epoch, seq=last, body=bodies, more=more)


def begun(number: int, seq: int) -> TopicState:
    return TopicState(number, ACCOUNT, "live", epoch=EPOCH, seq=seq)


def arrive(events: Events, seq: int, epoch: int = EPOCH) -> list[int]:
    return seqs(events.arrived(live(seq, epoch), seq))


def seqs(handed_out: list[Frame]) -> list[int]:
    assert all(frame.data["data"]["number"] == frame.seq for frame in handed_out)
    return [frame.seq for frame in handed_out]


def test_events_after_a_position_are_replayed_then_live():
    events = Events(ACCOUNT, JournalPosition(2))
    assert events.asks(0.0)
    assert events.ask(7, 0.0) == CatchUp(7, [ACCOUNT], 2, ROOM_BYTES)
    assert not events.asks(0.0)
    # Published while the journal is read.
    assert arrive(events, 7) == []
    assert seqs(events.answered(answer(7, 3, 4, more=True), 0.1)) == [3, 4]
    assert arrive(events, 8) == []
    assert events.ask(8, 0.1) == CatchUp(8, [ACCOUNT], 4, ROOM_BYTES, EPOCH, exact=True)
    replayed = events.answered(answer(8, 5, 7), 0.2)
    assert seqs(replayed) == [5, 6, 7, 8]
    assert (replayed[0].received_ns, replayed[0].published_ns, replayed[0].topic) == (0, 0, ACCOUNT)
    assert arrive(events, 8) == []
    assert arrive(events, 9) == [9]
    assert not events.asks(0.2)


def test_events_from_a_moment_are_replayed_then_live():
    events = Events(ACCOUNT, JournalPosition(0, start="09:30"))
    assert events.ask(1, 0.0) == CatchUp(1, [ACCOUNT], room=ROOM_BYTES, start="09:30")
    # Those that are published meanwhile wait.
    assert arrive(events, 7) == arrive(events, 8) == []
    assert seqs(events.answered(answer(1, 4, 5, more=True), 0.0)) == [4, 5]
    assert events.asks(0.0)
    assert events.ask(2, 0.0).after == 5
    assert seqs(events.answered(answer(2, 6, 7), 0.0)) == [6, 7, 8]
    assert arrive(events, 9) == [9]
    assert not events.is_incomplete


def test_moment_without_events_begins_at_the_end():
    events = Events(ACCOUNT, JournalPosition(0, start="09:30"))
    events.ask(1, 0.0)
    nothing = TopicState(1, ACCOUNT, "live", epoch=EPOCH, seq=5, body=b"[]", start_ms=1)
    assert events.answered(nothing, 0.0) == []
    assert arrive(events, 6) == [6]


def test_journal_that_began_later_is_told():
    events = Events(ACCOUNT, JournalPosition(0, start="09:30"))
    sequence = Sequence(LastValues([], False), {ACCOUNT: events}, False)
    [question] = sequence.questions("trade", 0.0)
    told = msgspec.structs.replace(answer(question.id, 1, 2), start_ms=1, holes=[Hole("store_began")])
    assert seqs(sequence.answered(told, 0.0)) == [1, 2]
    assert sequence.values.take_gaps() == [(ACCOUNT, None)]
    assert sequence.values.take_gaps() == []


def test_next_event_does_not_wait_for_an_answer():
    events = Events(ACCOUNT, JournalPosition(2))
    events.ask(1, 0.0)
    assert arrive(events, 3) == [3]
    assert seqs(events.answered(answer(1, 3, 3), 0.1)) == []
    assert arrive(events, 4) == [4]


def test_without_a_position_events_begin_at_once():
    events = Events(ACCOUNT)
    assert events.ask(1, 0.0).after is None
    assert arrive(events, 5) == [5]
    assert events.answered(begun(1, 4), 0.1) == []
    assert arrive(events, 6) == [6]


def test_event_may_arrive_after_an_answer_that_is_newer():
    events = Events(ACCOUNT)
    events.ask(1, 0.0)
    events.answered(begun(1, 5), 0.1)
    assert arrive(events, 4) == [4]
    assert arrive(events, 5) == [5]


@pytest.mark.parametrize("by", ["successor", "heartbeat"])
def test_lost_first_event_is_replayed_without_a_position(by):
    events = Events(ACCOUNT)
    events.ask(1, 0.0)
    events.answered(begun(1, 4), 0.1)
    if by == "successor":
        assert arrive(events, 6) == []
    else:
        events.check(False)
    assert events.ask(2, 0.2).after == 4
    assert seqs(events.answered(answer(2, 5, 6), 0.3)) == [5, 6]


def test_gap_is_repaired_from_the_journal():
    events = Events(ACCOUNT, JournalPosition(2))
    events.ask(1, 0.0)
    events.answered(answer(1, 3, 2), 0.1)
    assert [arrive(events, seq) for seq in (3, 6, 7)] == [[3], [], []]
    assert events.asks(0.2)
    assert events.ask(2, 0.2).after == 3
    assert arrive(events, 9) == [], "another jump while the question is under way"
    assert not events.asks(0.2)
    assert seqs(events.answered(answer(2, 4, 6), 0.3)) == [4, 5, 6, 7]
    assert events.asks(0.3)
    assert events.ask(3, 0.3).after == 7
    assert seqs(events.answered(answer(3, 8, 9), 0.4)) == [8, 9]
    assert not events.asks(0.4)


def test_held_events_are_bounded_and_the_rest_is_replayed(monkeypatch):
    monkeypatch.setattr(sequence_module, "MAX_HELD", 2)
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    for seq in (3, 4, 5, 6):
        assert arrive(events, seq) == []
    assert seqs(events.answered(answer(1, 1, 3), 0.1)) == [1, 2, 3]
    assert events.ask(2, 0.1).after == 3
    assert seqs(events.answered(answer(2, 4, 5), 0.2)) == [4, 5, 6]


def test_held_events_stay_bounded_after_an_answer(monkeypatch):
    monkeypatch.setattr(sequence_module, "MAX_HELD", 2)
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.answered(answer(1, 1, 3), 0.1)
    for seq in (5, 6, 7):
        assert arrive(events, seq) == []
    events.ask(2, 0.2)
    assert seqs(events.answered(answer(2, 4, 4), 0.3)) == [4]


def test_repeated_question_brings_nothing_twice():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.ask(2, AGAIN_SECONDS)
    assert events.answered(answer(1, 1, 2, more=True), 6.0) == []
    assert seqs(events.answered(answer(2, 1, 2, more=True), 6.1)) == [1, 2]
    assert events.ask(3, 6.1).after == 2
    assert events.answered(answer(2, 1, 2, more=True), 6.2) == []
    assert seqs(events.answered(answer(3, 3, 3), 6.3)) == [3]


def test_lost_answer_is_asked_for_again_at_the_new_position():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.answered(answer(1, 1, 2, more=True), 3.0)
    events.ask(2, 3.0)
    assert not events.asks(3.0 + AGAIN_SECONDS - 0.1)
    assert events.asks(3.0 + AGAIN_SECONDS)
    assert events.ask(3, 9.0).after == 2


def test_unknown_position_is_refused_with_the_oldest():
    events = Events(ACCOUNT, JournalPosition(99))
    events.ask(1, 0.0)
    expired = TopicState(1, ACCOUNT, "refused", "events after 99 are not there", "resume_expired", EPOCH, 7, oldest=3)
    with pytest.raises(Refused, match="trade/1/: events after 99 are not there") as refused:
        events.answered(expired, 0.1)
    assert (refused.value.code, refused.value.oldest, refused.value.newest) == ("resume_expired", 3, 7)


def test_events_continue_by_position_in_the_next_epoch():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.answered(answer(1, 1, 2), 0.1)
    # The new epoch may have another journal, with an event at the same position.
    assert arrive(events, 3, NEXT_EPOCH) == []
    assert events.ask(2, 0.2) == CatchUp(2, [ACCOUNT], 2, ROOM_BYTES, EPOCH, exact=True)
    assert seqs(events.answered(answer(2, 3, 2, epoch=NEXT_EPOCH), 0.3)) == [3]
    assert arrive(events, 4, NEXT_EPOCH) == [4]
    assert not events.asks(0.3)


def test_events_of_an_older_epoch_are_dropped():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.answered(answer(1, 1, 2), 0.1)
    assert arrive(events, 5) == []
    events.check(True)
    events.ask(2, 0.2)
    assert seqs(events.answered(answer(2, 3, 4, epoch=NEXT_EPOCH), 0.3)) == [3, 4]
    assert arrive(events, 5) == []
    assert arrive(events, 5, NEXT_EPOCH) == [5]


def test_events_of_an_older_epoch_are_not_awaited():
    events = Events(ACCOUNT, JournalPosition(2, EPOCH))
    events.ask(1, 0.0)
    assert arrive(events, 9) == []
    assert events.answered(answer(1, 3, 2, epoch=NEXT_EPOCH), 0.1) == []
    assert not events.asks(0.1)
    assert [arrive(events, seq, NEXT_EPOCH) for seq in (3, 9)] == [[3], []]


def test_events_of_a_third_epoch_wait_for_its_answer():
    events = Events(ACCOUNT, JournalPosition(2, EPOCH))
    events.ask(1, 0.0)
    assert arrive(events, 3, NEXT_EPOCH + 1) == []
    assert events.answered(answer(1, 3, 2, epoch=NEXT_EPOCH), 0.1) == []
    assert events.ask(2, 0.2).epoch == NEXT_EPOCH
    assert seqs(events.answered(answer(2, 3, 2, epoch=NEXT_EPOCH + 1), 0.3)) == [3]


def test_answer_of_a_new_epoch_is_about_the_position_asked():
    events = Events(ACCOUNT, JournalPosition(5))
    events.ask(1, 0.0)
    # The event 6 was never saved; the new epoch gives its position to another event.
    assert arrive(events, 6) == [6]
    assert events.answered(answer(1, 6, 5, epoch=NEXT_EPOCH), 0.1) == []
    assert events.ask(2, 0.2) == CatchUp(2, [ACCOUNT], 6, ROOM_BYTES, EPOCH, exact=True)


def test_answer_of_an_older_epoch_is_asked_for_again():
    events = Events(ACCOUNT, JournalPosition(2, NEXT_EPOCH))
    events.ask(1, 0.0)
    assert events.answered(answer(1, 3, 5), 0.1) == []
    assert events.ask(2, 0.2) == CatchUp(2, [ACCOUNT], 2, ROOM_BYTES, NEXT_EPOCH)


@pytest.mark.parametrize("seen", ["live", "replayed", "by-an-earlier-run"])
def test_event_of_a_new_epoch_waits_for_the_journal(seen):
    events = Events(ACCOUNT, JournalPosition(1 if seen == "by-an-earlier-run" else 0))
    events.ask(1, 0.0)
    if seen == "live":
        arrive(events, 1)
        events.answered(answer(1, 2, 1), 0.1)
    else:
        events.answered(answer(1, 2 if seen == "by-an-earlier-run" else 1, 1), 0.1)
    assert not events.asks(0.1)
    assert arrive(events, 1, NEXT_EPOCH) == []
    assert events.asks(0.1)
    assert events.ask(2, 0.2) == CatchUp(2, [ACCOUNT], 1, ROOM_BYTES, EPOCH, exact=True)


def test_position_of_an_earlier_run_is_not_exact():
    events = Events(ACCOUNT, JournalPosition(7, EPOCH))
    assert events.ask(1, 0.0) == CatchUp(1, [ACCOUNT], 7, ROOM_BYTES, EPOCH, exact=False)


def test_new_epoch_is_asked_about_the_position():
    events = Events(ALL_TRADES, JournalPosition(0))
    events.ask(1, 0.0)
    for seq in (1, 2, 3):
        events.arrived(live(seq, EPOCH, ALL_TRADES), seq)
    events.check(True)
    assert events.ask(2, 0.1) == CatchUp(2, [ALL_TRADES], 3, ROOM_BYTES, EPOCH, exact=True)


def test_event_that_the_answer_contained_is_old():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.answered(answer(1, 1, 2), 0.1)
    events.check(True)
    events.ask(2, 0.2)
    assert seqs(events.answered(answer(2, 3, 4, epoch=NEXT_EPOCH), 0.3)) == [3, 4]
    assert arrive(events, 4, NEXT_EPOCH) == []
    assert arrive(events, 2, EPOCH) == []


def test_unanswered_question_is_asked_again_in_a_new_epoch():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    events.check(False)
    assert not events.asks(0.1)
    events.check(True)
    assert events.asks(0.1)


def test_answer_that_holds_no_events_is_an_error():
    events = Events(ACCOUNT, JournalPosition(0))
    events.ask(1, 0.0)
    with pytest.raises(WireError, match=r"the answer about trade/\*/ holds no events"):
        events.answered(TopicState(1, ACCOUNT, "live", epoch=EPOCH, seq=1, body=b"\x01"), 0.1)


@pytest.mark.parametrize("seed", range(300))
def test_every_event_comes_once_or_the_journal_is_refused(seed):
    """Messages are late, lost, or overtaken by a new epoch; with odd seeds its journal may be another one."""
    choose = random.Random(seed)
    # The last event of each epoch that the journal still has, and how many events are on the disk.
    epochs, of, saved, epoch, now = {EPOCH: math.inf}, 0, 0, EPOCH, 0.0
    journal: list[int] = []
    number = itertools.count()
    events = Events(ACCOUNT, JournalPosition(0))
    handed_out: list[Frame] = []
    news: list[Frame] = []
    answers: list[TopicState] = []

    def content(seq: int) -> bytes:
        return frames.encode({"seq": seq, "of": of, "number": journal[seq - 1]})

    def has(question: CatchUp, after: int) -> bool:
        if question.epoch is not None and question.epoch not in epochs:
            return False
        return after <= len(journal) and not (question.exact and after > epochs[question.epoch])

    def reply(question: CatchUp) -> None:
        after = question.after or 0
        if not has(question, after):
            refusal = TopicState(question.id, ACCOUNT, "refused", "no", "resume_expired", epoch, len(journal))
            answers.append(refusal)
            return
        last = min(len(journal), after + choose.randrange(1, 4))
        bodies = frames.encode([msgspec.Raw(content(seq)) for seq in range(after + 1, last + 1)])
        answers.append(TopicState(question.id, ACCOUNT, "live", None, None, epoch, last, bodies, last < len(journal)))

    def step(lossy: bool) -> None:
        nonlocal now
        now += 0.5
        if events.asks(now):
            question = events.ask(choose.randrange(1, 1 << 60), now)
            if not lossy or choose.random() < 0.8:
                reply(question)
        for queue, take in (
            (news, lambda frame: events.arrived(frame, frame.seq)),
            (answers, lambda state: events.answered(state, now)),
        ):
            for _ in range(choose.randrange(4)):
                if queue:
                    message = queue.pop(0)
                    if not lossy or choose.random() < 0.8:
                        handed_out.extend(take(message))

    def run() -> None:
        nonlocal of, saved, epoch
        for _ in range(200):
            if choose.random() < 0.6:
                journal.append(next(number))
                news.append(Frame(ACCOUNT, epoch, len(journal), 1, 2, content(len(journal))))
            if choose.random() < 0.2:
                saved = len(journal)
            if choose.random() < 0.02:
                epoch += 1
                kind = choose.random() if seed % 2 else 1.0
                if kind < 0.4 and (handed_out or of):
                    of += 1
                    epochs.clear()
                    journal[:] = [next(number) for _ in range(choose.choice((0, saved // 2, saved, saved + 20)))]
                    saved = len(journal)
                elif kind < 0.7:
                    del journal[saved:]
                epochs.update({old: min(last, len(journal)) for old, last in epochs.items()})
                epochs[epoch] = math.inf
                # Answers of the older epoch may still arrive.
                events.check(True)
            step(lossy=True)
        for _ in range(100):
            events.check(False)
            step(lossy=False)

    try:
        run()
        assert not of
        assert [frame.data["number"] for frame in handed_out] == journal
    except Refused:
        unsaved = [frame for frame in handed_out if frame.data["number"] not in journal]
        assert of or unsaved
    assert {frame.data["of"] for frame in handed_out} <= {0}
    assert seqs_of(handed_out) == list(range(1, len(handed_out) + 1))


def seqs_of(handed_out: list[Frame]) -> list[int]:
    return [frame.data["seq"] for frame in handed_out]


# Everything that one consumer receives.


def heartbeat(trade_seq: int, epoch: int = EPOCH) -> Frame:
    status = {"source": "sim", "simulated": True, "state": "up", "epoch": epoch, "time": 1, "trade_seq": trade_seq}
    return Frame(STATUS_TOPIC, epoch, 1, 1, 1, frames.encode(status))


def questions(sequence: Sequence, now: float) -> Iterator[CatchUp]:
    """Yield the questions for both sockets."""
    yield from sequence.questions("market", now)
    yield from sequence.questions("trade", now)


def joined(*topics: Topic) -> Sequence:
    """Return a sequence whose first questions have been asked and answered."""
    sequence = Sequence(LastValues([], True), {topic: Events(topic, JournalPosition(0)) for topic in topics}, False)
    for question in questions(sequence, 0.0):
        nothing = TopicState(question.id, question.topics[0], "live", epoch=EPOCH, body=frames.encode([]))
        assert sequence.answered(nothing, 0.0) == []
    return sequence


def asked(sequence: Sequence) -> list[str]:
    return [topic for question in questions(sequence, 1.0) for topic in question.topics]


def test_trade_topics_are_checked_one_heartbeat_after_an_event():
    sequence = joined(ACCOUNT, trade_topic("2"))
    assert sequence.arrived(heartbeat(1)) == []
    assert asked(sequence) == []
    assert sequence.arrived(heartbeat(1)) == []
    assert asked(sequence) == [ACCOUNT, "trade/2/"]


def test_without_events_nothing_is_checked():
    sequence = joined(ACCOUNT)
    sequence.arrived(heartbeat(5))
    sequence.arrived(heartbeat(5))
    assert asked(sequence) == [ACCOUNT]
    question = sequence._questions
    sequence.answered(answer(question, 1, 0), 1.0)
    for _ in range(3):
        sequence.arrived(heartbeat(5))
        assert asked(sequence) == []
    sequence.arrived(heartbeat(6))
    assert asked(sequence) == [], "the event may still be on its way"
    sequence.arrived(heartbeat(7))
    assert asked(sequence) == [ACCOUNT]
    sequence.answered(answer(sequence._questions, 1, 0), 1.0)
    sequence.arrived(heartbeat(7))
    assert asked(sequence) == [ACCOUNT], "what was published between the two heartbeats before"


def test_new_epoch_is_checked_at_once():
    sequence = joined(ACCOUNT)
    for _ in range(2):
        sequence.arrived(heartbeat(1))
    assert asked(sequence) == [ACCOUNT]
    sequence.answered(answer(sequence._questions, 1, 0), 1.0)
    sequence.arrived(heartbeat(1, NEXT_EPOCH))
    assert asked(sequence) == [ACCOUNT]


def test_all_accounts_have_the_positions_of_the_journal():
    sequence = joined(ALL_TRADES)
    bodies = [frames.encode({"type": "order", "seq": seq}) for seq in (1, 2, 3)]
    (first,) = sequence.arrived(Frame(trade_topic("7"), EPOCH, 55, 1, 1, bodies[0]))
    assert (first.topic, first.seq) == ("trade/7/", 55)
    assert sequence.arrived(Frame(trade_topic("8"), EPOCH, 1, 1, 1, bodies[2])) == []
    assert asked(sequence) == [ALL_TRADES]
    missing = frames.encode([frames.decode(body) for body in bodies[1:2]])
    state = TopicState(sequence._questions, ALL_TRADES, "live", epoch=EPOCH, seq=2, body=missing)
    repaired, waited = sequence.answered(state, 1.0)
    assert (repaired.topic, repaired.seq, repaired.body) == (ALL_TRADES, 2, bodies[1])
    assert (waited.topic, waited.seq) == ("trade/8/", 1)


def test_accounts_of_a_shorter_prefix_are_repaired_separately():
    sequence = joined()
    assert seqs(sequence.arrived(live(5))) == [5]
    assert sequence.arrived(live(7)) == []
    list(questions(sequence, 0.0))
    assert seqs(sequence.answered(answer(sequence._questions, 6, 7), 0.1)) == [6, 7]


def test_heartbeats_are_handed_out_if_they_were_asked_for():
    for shows in (True, False):
        sequence = Sequence(LastValues([], True), {ACCOUNT: Events(ACCOUNT)}, shows)
        assert len(sequence.arrived(heartbeat(1))) == shows


def test_a_question_that_could_not_be_sent_is_asked_again():
    sequence = Sequence(LastValues([QUOTE], True), {}, False)
    for question in questions(sequence, 0.0):
        assert question.topics == [QUOTE]
        break
    assert asked(sequence) == [QUOTE]
    assert asked(sequence) == []


@pytest.mark.parametrize(("topic", "shown"), [(STATUS_TOPIC, STATUS_TOPIC), (ACCOUNT, "trade/*/")])
def test_a_body_that_cannot_be_read_is_named(topic, shown):
    sequence = Sequence(LastValues([], True), {ALL_TRADES: Events(ALL_TRADES)}, False)
    with pytest.raises(WireError, match=re.escape(f"a message of {shown} cannot be read")):
        sequence.arrived(Frame(topic, EPOCH, 1, 1, 1, b"\xc1"))


def test_losses_of_market_topics_are_told_once():
    values = LastValues([], True)
    quotes = [(EPOCH, 3), (EPOCH, 4), (EPOCH, 7), (EPOCH, 7), (NEXT_EPOCH, 1), (NEXT_EPOCH, 2)]
    gaps = []
    for epoch, seq in quotes:
        values.arrived(live(seq, epoch, QUOTE))
        gaps.append(values.take_gaps())
    assert gaps == [[], [], [(QUOTE, 2)], [], [(QUOTE, None)], []]


def test_losses_after_the_last_value_are_told():
    values = LastValues([QUOTE], True)
    assert values.arrived(live(7, topic=QUOTE)) == []
    state = TopicState(1, QUOTE, "live", epoch=EPOCH, seq=4, body=frames.encode({}))
    assert [frame.seq for frame in values.answered(state)] == [4, 7]
    assert values.take_gaps() == [(QUOTE, 2)]


def value(seq: int, epoch: int = EPOCH, *, topic: Topic = QUOTE, more: bool = False) -> TopicState:
    return TopicState(1, topic, "live", epoch=epoch, seq=seq, body=VALUE, more=more)


def late(topic: Topic, seq: int) -> LastValues:
    """Return what has handed out the message `seq` of a topic, because no answer came in time."""
    values = LastValues([topic], True)
    assert values.arrived(live(seq, topic=topic)) == []
    assert shown(values.give_up()) == [seq]
    return values


def shown(frames: list[Frame]) -> list[int | str]:
    """Return the number of each message, and of each last value with its sign."""
    return [f"={frame.seq}" if frame.body == VALUE else frame.seq for frame in frames]


@pytest.mark.parametrize("topic", [QUOTE, WHOLE])
def test_late_last_value_replaces_no_messages_on_their_way(topic):
    values = late(topic, 7)
    assert values.answered(value(9, topic=topic)) == []
    got = [shown(values.arrived(live(seq, topic=topic))) for seq in (8, 9, 10)]
    # What a market had before it ticked is in its last value alone; of a quote it is the message.
    assert got == [[8], [9, "=9"] if topic is WHOLE else [9], [10]]
    assert values.take_gaps() == []
    assert values.take_overdue(0.0) == values.take_overdue(1e9) == []


@pytest.mark.parametrize("topic", [QUOTE, WHOLE])
@pytest.mark.parametrize("seq", [6, 7])
def test_late_last_value_that_is_not_newer_is_no_news(topic, seq):
    values = late(topic, 7)
    assert shown(values.answered(value(seq, topic=topic))) == (["=7"] if (topic, seq) == (WHOLE, 7) else [])
    assert shown(values.arrived(live(8, topic=topic))) == [8]
    assert values.take_gaps() == []


@pytest.mark.parametrize("topic", [QUOTE, WHOLE])
def test_late_last_value_replaces_what_is_lost(topic):
    values = late(topic, 7)
    assert values.answered(value(10, topic=topic)) == []
    # A later message shows that none of those before it will come.
    assert shown(values.arrived(live(8, topic=topic))) == [8]
    assert shown(values.arrived(live(12, topic=topic))) == ["=10", 12]
    assert values.take_gaps() == [(topic, 1), (topic, 1)]
    assert values.take_overdue(0.0) == values.take_overdue(1e9) == []


def test_late_last_value_of_a_new_epoch_waits_for_its_messages():
    values = late(WHOLE, 7)
    assert values.answered(value(2, NEXT_EPOCH, topic=WHOLE)) == []
    assert shown(values.arrived(live(8, topic=WHOLE))) == [8]
    assert values.take_gaps() == []
    assert [shown(values.arrived(live(seq, NEXT_EPOCH, WHOLE))) for seq in (1, 2, 3)] == [[1], [2, "=2"], [3]]
    assert values.take_gaps() == [(WHOLE, None)]


def test_late_last_value_is_waited_for_so_long():
    values = late(QUOTE, 7)
    assert values.answered(value(9)) == []
    assert values.take_overdue(100.0) == values.take_overdue(99.9 + LATE_SECONDS) == []
    assert values.has_late
    # A newer one is waited for anew.
    assert values.answered(value(10)) == []
    assert values.take_overdue(100.0 + LATE_SECONDS) == []
    assert shown(values.take_overdue(100.0 + 2 * LATE_SECONDS)) == ["=10"]
    assert values.take_gaps() == [(QUOTE, 2)]
    assert not values.has_late
    assert shown(values.arrived(live(10, topic=QUOTE)) + values.arrived(live(11, topic=QUOTE))) == [11]


@pytest.mark.parametrize(("between", "handed_out"), [((), []), ((8,), ["=8"] * 3), ((8, 9), [])])
def test_parts_of_a_late_last_value_are_no_news_beside_it(between, handed_out):
    values = late(WHOLE, 7)
    got = values.answered(value(8, topic=WHOLE, more=True))
    got += [frame for seq in between for frame in values.arrived(live(seq, topic=WHOLE))]
    assert shown(got) == list(between)
    last = values.answered(value(8, topic=WHOLE, more=True)) + values.answered(value(8, topic=WHOLE))
    assert shown(last) == handed_out
    got = [frame for seq in (8, 9, 10) for frame in values.arrived(live(seq, topic=WHOLE))]
    assert shown(got) == {(): [8, *["=8"] * 3, 9, 10], (8,): [9, 10], (8, 9): [10]}[between]
    assert values.take_gaps() == []


def test_parts_that_come_too_late_are_none_of_the_last_value():
    values = LastValues([WHOLE], True)
    assert values.answered(value(8, topic=WHOLE, more=True)) == []
    assert values.arrived(live(8, topic=WHOLE)) == values.arrived(live(9, topic=WHOLE)) == []
    # The first part was not handed out, so that no number goes back.
    assert shown(values.give_up()) == [8, 9]
    assert values.answered(value(8, topic=WHOLE)) == []
    # Of an answer whose rest is lost, because its process has ended, nothing is handed out.
    assert values.answered(value(9, topic=WHOLE, more=True)) == []
    assert values.answered(value(1, NEXT_EPOCH, topic=WHOLE)) == []
    assert shown(values.arrived(live(1, NEXT_EPOCH, WHOLE))) == [1, "=1"]


@pytest.mark.parametrize("seed", range(100))
def test_no_message_is_missing_without_being_told(seed):
    """Answers come at any time, in parts, and messages are lost or late."""
    choose = random.Random(seed)
    topic = choose.choice([QUOTE, WHOLE])
    lossy = seed % 2
    values = LastValues([topic], True)
    published, way, answers, handed_out = 0, [], [], []
    for step in range(200):
        act = choose.random()
        if act < 0.4:
            published += 1
            if not lossy or choose.random() < 0.9:
                way.append(live(published, topic=topic))
        elif act < 0.5 and published:
            parts = choose.randrange(1, 4)
            answers += [value(published, topic=topic, more=part < parts) for part in range(1, parts + 1)]
        elif act < 0.7 and answers:
            handed_out += values.answered(answers.pop(0))
        elif way:
            handed_out += values.arrived(way.pop(0))
        if step == 20:
            handed_out += values.give_up()
    for frame in way:
        handed_out += values.arrived(frame)
    values.take_overdue(0.0)
    handed_out += values.take_overdue(LATE_SECONDS)
    numbers = [frame.seq for frame in handed_out]
    assert numbers == sorted(numbers)
    told = sum(count for _, count in values.take_gaps())
    assert told == numbers[-1] - numbers[0] + 1 - len(set(numbers))
    assert lossy or not told
    messages = [frame.seq for frame in handed_out if frame.body != VALUE]
    assert len(messages) == len(set(messages))


@pytest.mark.parametrize("seq", [1, 7, 1000])
def test_late_answer_of_an_older_epoch_is_no_news(seq):
    values = LastValues([QUOTE], True)
    values.give_up()
    assert [frame.seq for frame in values.arrived(live(7, NEXT_EPOCH, QUOTE))] == [7]
    assert values.answered(value(seq, EPOCH, more=True)) == []
    assert values.answered(value(seq, EPOCH)) == []
    refused = TopicState(1, QUOTE, "refused", "no", "upstream_refused", epoch=EPOCH)
    assert values.answered(refused) == []
    # Its position was not taken: the next frame is the next one.
    assert [frame.seq for frame in values.arrived(live(8, NEXT_EPOCH, QUOTE))] == [8]
    assert values.take_gaps() == []
    assert values.answered(value(9, NEXT_EPOCH)) == []
    assert shown(values.arrived(live(9, NEXT_EPOCH, QUOTE))) == [9]


def test_last_value_of_an_older_epoch_is_asked_for_again_once():
    sequence = Sequence(LastValues([QUOTE], True), {}, False)
    values = sequence.values
    assert asked(sequence) == [QUOTE]
    assert values.arrived(live(2, NEXT_EPOCH, QUOTE)) == []
    assert values.answered(value(50, EPOCH)) == []
    assert asked(sequence) == [QUOTE]
    # The process that publishes now answers.
    answers = values.answered(value(1, NEXT_EPOCH))
    assert [(frame.epoch, frame.seq) for frame in answers] == [(NEXT_EPOCH, 1), (NEXT_EPOCH, 2)]
    # One whose clock was set back would answer so for ever.
    again = Sequence(LastValues([QUOTE], True), {}, False)
    asked(again)
    again.values.arrived(live(2, NEXT_EPOCH, QUOTE))
    again.values.answered(value(50, EPOCH))
    asked(again)
    assert [frame.seq for frame in again.values.answered(value(50, EPOCH))] == [2]
    assert asked(again) == []


def test_questions_have_different_numbers():
    sequence = Sequence(LastValues([QUOTE], True), {ACCOUNT: Events(ACCOUNT), ALL_TRADES: Events(ALL_TRADES)}, False)
    numbers = [question.id for question in questions(sequence, 0.0)]
    assert len(numbers) == 3
    assert all(one < other for one, other in pairwise(numbers))
