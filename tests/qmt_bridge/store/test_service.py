"""The socket for questions to a store: how many answers it makes before messages of the feeder have their turn."""

from __future__ import annotations

from itertools import count

import pytest
import zmq

from qmt_bridge.addresses.endpoint import store_endpoint
from qmt_bridge.config import Config
from qmt_bridge.handshakes import Links
from qmt_bridge.sockets import connect_dealer
from qmt_bridge.store.service import Service
from qmt_bridge.system import clock
from qmt_bridge.wire.history import TopicHistory
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import quote_topic


def test_fewer_answers_are_made_while_messages_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def answer(ask: CatchUp, text: str) -> TopicHistory:
        made.append(text)
        return TopicHistory(ask.id, text)

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    links = Links()
    service = Service(context, store_endpoint(Config(store_addr="tcp://127.0.0.1:*"), "feeder"), "", links, answer)
    asker = connect_dealer(context, service.address, None, name="store_addr")
    asker.send(encode_ask(CatchUp(1, [quote_topic(f"{600000 + number}.SH") for number in range(100)])))
    assert service.socket.poll(20_000)
    service.take()
    # Each look at the clock is 0.9 ms later.
    looks = count()
    monkeypatch.setattr(clock, "monotonic", lambda: next(looks) * 0.0009)
    service.send(0.0, busy=True)
    assert len(made) == 1
    service.send(1.0)
    # No more than the system and ZeroMQ hold for an asker that has not read any.
    assert len(made) >= 4
    monkeypatch.undo()
    asker.close(linger=0)
    service.close()
    links.close()
    context.destroy(0)
