"""When a connection reads, and when it does not, so that TCP holds its pusher; with a transport that does nothing."""

from __future__ import annotations

import asyncio

from feeder.push.connection import Connection
from feeder.push.message import BadLine, Message
from tests.support.waiting import until


class Silent(asyncio.Transport):
    """A transport that takes all, and knows whether it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.written: list[bytes] = []
        self.is_aborted = False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.written.append(b"")

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.is_aborted

    def abort(self) -> None:
        self.is_aborted = True


class Full:
    """An owner without room until `has_room` is set."""

    def __init__(self) -> None:
        self.has_room = False
        self.taken = 0

    def take(self, connection: Connection, message: Message) -> bool:
        self.taken += self.has_room
        return self.has_room

    def refused(self, connection: Connection, bad: BadLine) -> None:
        raise AssertionError(bad)

    def lost(self, connection: Connection) -> None:
        raise AssertionError("the other end is there")

    def give_way(self) -> None:
        pass

    def is_crowded(self) -> bool:
        return False


async def test_nothing_is_read_while_there_is_no_room() -> None:
    owner, transport = Full(), Silent()
    connection = Connection(owner)
    connection.connection_made(transport)
    connection.data_received(b'{"type":"heartbeat"}\n' * 3)
    assert not transport.reads
    # What was under way is kept, and taken in order.
    connection.data_received(b'{"type":"heartbeat"}\n')
    assert owner.taken == 0
    owner.has_room = True
    await until(lambda: transport.reads, "the reading to go on")
    assert owner.taken == 4
    connection.end()


async def test_last_line_is_sent_and_what_is_unread_is_read() -> None:
    owner, transport = Full(), Silent()
    connection = Connection(owner)
    connection.connection_made(transport)
    connection.data_received(b'{"type":"heartbeat"}\n')
    connection.end(b"refused\n")
    # A socket that is closed with unread data takes the last line from the other end.
    assert (transport.written, transport.reads) == ([b"refused\n", b""], True)
    owner.has_room = True
    connection.data_received(b'{"type":"heartbeat"}\n')
    await until(lambda: transport.is_aborted, "the end")
    assert owner.taken == 0
