"""What may wait for connections that do not read: the newest messages of each, for a time."""

from __future__ import annotations

from qmt_bridge.answering.unread import HELD, MOST_BYTES, SECONDS, Unread

MIB = 1024 * 1024


def test_many_connections_together_fill_the_limit() -> None:
    unread = Unread()
    for number in range(MOST_BYTES // MIB):
        assert not unread.is_full
        unread.sent(b"%d" % number, MIB, 0.0)
    assert unread.is_full


def test_connection_counts_for_its_newest_messages_only() -> None:
    unread = Unread()
    for _ in range(1000):
        unread.sent(b"a", MOST_BYTES // HELD - 1, 0.0)
    assert not unread.is_full
    unread.sent(b"a", MOST_BYTES, 0.0)
    assert unread.is_full


def test_connection_that_is_closed_counts_no_longer() -> None:
    unread = Unread()
    unread.sent(b"a", MOST_BYTES, 0.0)
    unread.gone(b"a")
    unread.gone(b"b")
    assert (unread.is_full, len(unread)) == (False, 0)


def test_message_counts_no_longer_than_its_connection_may_last() -> None:
    unread = Unread()
    unread.sent(b"a", MOST_BYTES, 0.0)
    unread.sent(b"b", 1, 1.0)
    unread.expire(SECONDS - 0.1)
    assert unread.is_full
    unread.expire(SECONDS)
    assert (unread.is_full, len(unread)) == (False, 1)
