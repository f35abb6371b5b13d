"""The store as a consumer: it reads messages of topics that it knows and of new ones, and leaves out all else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from qmt_bridge.addresses.endpoint import followed_endpoint
from qmt_bridge.config import Config
from qmt_bridge.handshakes import Links
from qmt_bridge.store.follower import Follower
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.topics import Topic, quote_topic
from tests.support.waiting import wait_for

KNOWN, NEW = quote_topic("600519.SH"), quote_topic("000001.SZ")
NAMES = {KNOWN.encode(): KNOWN}


class Line:
    """A follower, and the publisher that it follows."""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.publisher = self.context.socket(zmq.XPUB)
        self.publisher.bind("tcp://127.0.0.1:*")
        config = Config(market_addr=self.publisher.getsockopt_string(zmq.LAST_ENDPOINT))
        self.links = Links()
        self.follower = Follower(self.context, followed_endpoint(config), self.links, [KNOWN])
        wanted = {b"\1quote/", b"\1" + KNOWN.encode()}
        while wanted:
            assert self.publisher.poll(20_000)
            wanted.discard(self.publisher.recv())

    def take(self, count: int) -> list[Frame]:
        """Return the frames of the next so many messages, read or left out."""
        taken: list[Frame] = []
        before = self.follower.strange

        def has_all() -> bool:
            taken.extend(self.follower.take(1, NAMES))
            return len(taken) + self.follower.strange - before == count

        wait_for(has_all, "the messages")
        return taken


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.links.close()
    line.context.destroy(0)


def frame(topic: Topic, seq: int) -> Frame:
    return Frame(topic, 7, seq, 1, 2, b"{}")


def test_known_and_new_topics_are_read_alike(line: Line) -> None:
    sent = [frame(KNOWN, 1), frame(NEW, 1), frame(KNOWN, 2)]
    for each in sent:
        line.publisher.send_multipart(each.to_parts())
    assert [each.to_parts() for each in line.take(3)] == [each.to_parts() for each in sent]
    assert line.follower.strange == 0


@pytest.mark.parametrize("parts", [[b"quote/"], [b"quote/x", b"y", b"z"], [NEW.encode() + bytes(32)]])
def test_what_is_no_message_is_left_out(line: Line, parts: list[bytes]) -> None:
    line.publisher.send_multipart(parts)
    line.publisher.send_multipart(frame(NEW, 1).to_parts())
    assert [each.topic for each in line.take(2)] == [NEW]
    assert line.follower.strange == 1


def test_known_topic_without_a_body_is_left_out(line: Line) -> None:
    line.publisher.send_multipart([KNOWN.encode() + bytes(32)])
    assert line.take(1) == []
    line.publisher.send_multipart(frame(KNOWN, 1).to_parts())
    assert [each.seq for each in line.take(1)] == [1]
