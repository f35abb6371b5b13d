"""qmt_bridge.tapes.tally: count messages, and find gaps in their sequence numbers."""

from __future__ import annotations

import pytest

from qmt_bridge.errors import WireError
from qmt_bridge.tapes import tally as tally_module
from qmt_bridge.tapes.tally import Count, Gap, Tally
from qmt_bridge.tapes.tape import SESSION_TOPIC, Recorded, session_frame
from qmt_bridge.wire.frames import Frame, encode
from qmt_bridge.wire.topics import STATUS_TOPIC, Topic

QUOTE, OTHER, WHOLE = "quote/600519.SH/tick/", "quote/000001.SZ/tick/", "whole/SH/"


def begin(*topics: str) -> Recorded:
    return Recorded(1, session_frame(topics, "1.0"))


def news(topic: str, seq: int, epoch: int = 7, body: bytes = b"12345") -> Recorded:
    return Recorded(100 + seq, Frame(Topic(topic), epoch, seq, 1, 2, body))


def last_value(topic: str, seq: int, epoch: int = 7) -> Recorded:
    return Recorded(100 + seq, Frame(Topic(topic), epoch, seq, 0, 0, b"12345"))


def gaps(*recorded: Recorded) -> list[tuple[str, int, int]]:
    """Return the gaps as topic, last number, next number."""
    tally = Tally()
    for each in recorded:
        tally.note(each)
    assert tally.gap_count == len(tally.gaps)
    assert tally.missed == sum(gap.missed for gap in tally.gaps)
    return [(gap.topic, gap.after, gap.seq) for gap in tally.gaps]


def test_the_first_heartbeat_of_a_new_epoch_has_any_number() -> None:
    status = encode({"source": "sim", "simulated": True, "state": "up"})
    beats = [news(STATUS_TOPIC, seq, epoch, status) for epoch, seq in ((7, 4), (7, 5), (8, 3), (8, 5))]
    assert gaps(begin("status/"), *beats) == [(STATUS_TOPIC, 3, 5)]


def test_messages_bytes_and_topics_are_counted_by_kind() -> None:
    tally = Tally()
    for recorded in (begin("quote/"), news(QUOTE, 1), news(QUOTE, 2), news(OTHER, 1), news(WHOLE, 1, body=b"1")):
        tally.note(recorded)
    assert tally.kinds == {"quote": Count(3, 15, 2), "whole": Count(1, 1, 1)}
    assert (tally.frames, tally.size, tally.topics) == (4, 16, 3)
    assert (tally.first_ns, tally.last_ns) == (101, 101)
    [session] = tally.sessions
    assert (session.topics, session.version, session.begin_ns) == (("quote/",), "1.0", 1)


def test_time_goes_from_the_first_to_the_last_message() -> None:
    tally = Tally()
    for recorded in (begin("quote/"), news(QUOTE, 5), news(QUOTE, 9)):
        tally.note(recorded)
    assert (tally.first_ns, tally.last_ns) == (105, 109)


def test_the_feeders_say_where_the_data_comes_from() -> None:
    tally = Tally()
    for seq, (source, simulated) in enumerate([("xtquant", False), ("sim", True), ("xtquant", False)], 1):
        tally.note(news(STATUS_TOPIC, seq, body=encode({"source": source, "simulated": simulated, "state": "up"})))
        assert tally.simulated == (seq > 1)
    assert tally.sources == ["xtquant", "sim"]


def test_a_number_that_is_left_out_is_a_gap() -> None:
    tally = Tally()
    for recorded in (begin("quote/"), news(QUOTE, 3), news(OTHER, 1), news(QUOTE, 4), news(QUOTE, 8)):
        tally.note(recorded)
    assert tally.gaps == [Gap(QUOTE, 7, 4, 8, 108)]
    assert (tally.gap_count, tally.missed) == (1, 3)


def test_a_number_that_goes_back_is_a_gap_in_which_nothing_is_missing() -> None:
    assert gaps(begin("quote/"), news(QUOTE, 5), news(QUOTE, 5)) == [(QUOTE, 5, 5)]
    tally = Tally()
    for recorded in (begin("quote/"), news(QUOTE, 5), news(QUOTE, 3)):
        tally.note(recorded)
    assert (tally.gap_count, tally.missed) == (1, 0)


def test_all_parts_of_a_last_value_have_one_position() -> None:
    parts = [last_value(WHOLE, 5)] * 3
    assert gaps(begin("whole/"), *parts, news(WHOLE, 6)) == []
    assert gaps(begin("whole/"), news(WHOLE, 5), *parts, news(WHOLE, 6)) == []
    assert gaps(begin("whole/"), *parts, news(WHOLE, 7)) == [(WHOLE, 5, 7)]
    assert gaps(begin("whole/"), news(WHOLE, 3), *parts) == [(WHOLE, 3, 5)]


def test_a_feeder_that_began_anew_begins_with_one() -> None:
    before = [begin("quote/"), news(QUOTE, 5)]
    assert gaps(*before, news(QUOTE, 1, epoch=8), news(QUOTE, 2, epoch=8)) == []
    assert gaps(*before, news(QUOTE, 3, epoch=8)) == [(QUOTE, 0, 3)]
    # A topic may have been published long before the recorder subscribed to it.
    assert gaps(*before, news(OTHER, 3, epoch=8)) == []


def test_a_new_epoch_between_recordings_is_no_gap() -> None:
    before = [begin("quote/"), news(QUOTE, 5), begin("quote/")]
    assert gaps(*before, news(QUOTE, 3, epoch=8), news(QUOTE, 4, epoch=8)) == []
    assert gaps(*before, news(QUOTE, 6)) == []
    assert gaps(*before, news(QUOTE, 9)) == [(QUOTE, 5, 9)]


def test_numbers_of_trade_events_go_on_whatever_the_feeder_does() -> None:
    begun = begin("trade/1/", "trade/2/")
    assert gaps(begun, news("trade/1/", 5), news("trade/2/", 1), news("trade/1/", 6, epoch=8)) == []
    assert gaps(begun, news("trade/1/", 5), news("trade/1/", 7, epoch=8)) == [("trade/1/", 5, 7)]
    # An event from the journal counts like a published one.
    assert gaps(begun, last_value("trade/1/", 5), last_value("trade/1/", 5)) == [("trade/1/", 5, 5)]


def event(account: str, position: int, seq: int = 0) -> Recorded:
    """Return an event of an account at its position in the journal; one fetched from there names no account."""
    topic = f"trade/{account}/" if account else "trade/"
    return news(topic, seq or position, body=encode({"type": "order", "seq": position, "data": {}}))


def test_the_common_prefix_has_the_journals_trade_events() -> None:
    begun = begin("quote/", "trade/")
    fetched = event("", 8)
    assert gaps(begun, event("1", 6, 3), event("2", 7, 1), fetched, event("1", 9, 5), event("2", 10, 2)) == []
    assert gaps(begun, event("1", 6, 3), event("2", 8, 1)) == [("trade/2/", 6, 8)]


def test_each_session_has_its_own_way_to_number_trade_events() -> None:
    one, all_of_them = begin("trade/1/"), begin("trade/")
    first = [event("1", 50, 5), event("1", 52, 6)]
    together = [event("1", 60, 8), event("", 61), event("1", 62, 10)]
    assert gaps(one, *first, all_of_them, *together) == []
    assert gaps(all_of_them, *together, one, *first) == []
    assert gaps(all_of_them, *together, all_of_them, event("1", 64, 12)) == [("trade/1/", 62, 64)]


def test_a_tape_whose_beginning_is_lost_is_counted_too() -> None:
    assert gaps(news(QUOTE, 5), news(QUOTE, 7)) == [(QUOTE, 5, 7)]


def test_gaps_beyond_the_limit_are_only_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally_module, "MAX_GAPS", 2)
    tally = Tally()
    for seq in range(1, 11, 2):
        tally.note(news(QUOTE, seq))
    assert (len(tally.gaps), tally.gap_count, tally.missed) == (2, 4, 4)


@pytest.mark.parametrize(
    ("topic", "what"), [(SESSION_TOPIC, "session"), (STATUS_TOPIC, "status"), ("trade/1/", "trade event")]
)
def test_what_cannot_be_read_is_named(topic: str, what: str) -> None:
    tally = Tally()
    tally.note(begin("trade/"))
    with pytest.raises(WireError, match=f"a {what} on the tape cannot be read"):
        tally.note(news(topic, 1, body=b"\xc1"))
