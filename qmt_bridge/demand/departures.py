"""Find out whether the last subscriber of a topic has left.

libzmq 4.3.5 reports the first subscription and the last unsubscription of a topic. It also reports an unsubscription by
a connection that never subscribed the topic, while other connections do. If the topic were stopped then, these would
get no more data, and libzmq would not report later subscribers, which are not the first ones. So feeder and forwarder
subscribe the topic by a socket of their own: libzmq reports this subscription only if there is no other one.
"""

from __future__ import annotations

import secrets
from itertools import count

import zmq

# A context must not have two sockets at the same address.
_numbers = count()


class Departures:
    """Ask `publisher`, an XPUB of the same thread, which of the topics in doubt have no subscriber any more.

    The answers come among the messages of `publisher`, which its owner reads.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], publisher: zmq.Socket[bytes]) -> None:
        # Stands around the answers. No other peer can guess it, so none can answer.
        self._mark = b"\2" + secrets.token_bytes(16)
        self._are_answers = False
        # How many marks have not been read yet.
        self._marks = 0
        # In the order of the unsubscriptions.
        self._doubted: dict[str, None] = {}
        self._publisher = publisher
        self._address = f"inproc://departures.{next(_numbers)}"
        publisher.bind(self._address)
        self._socket = context.socket(zmq.XSUB)
        self._socket.linger = 0
        # Without a limit: an XSUB loses what is beyond it.
        self._socket.sndhwm = 0
        self._socket.connect(self._address)

    def doubt(self, topic: str) -> None:
        """Note a topic to ask about."""
        self._doubted[topic] = None

    def ask(self) -> None:
        """Ask about all topics that were noted since the last time."""
        if not self._doubted:
            return
        # libzmq reads all of it at once, so nothing of another peer comes between the marks.
        self._socket.send(self._mark)
        for topic in self._doubted:
            text = topic.encode()
            self._socket.send(b"\1" + text)
            self._socket.send(b"\0" + text)
        self._socket.send(self._mark)
        self._marks += 2
        self._doubted.clear()

    def is_mark(self, said: bytes) -> bool:
        """Return whether `said` stands before or after answers, and is no message of a consumer."""
        if said != self._mark:
            return False
        self._are_answers = not self._are_answers
        self._marks -= 1
        return True

    @property
    def are_answers(self) -> bool:
        """Return whether the messages that are read now are answers: an unsubscription among them is a true one."""
        return self._are_answers

    @property
    def is_asking(self) -> bool:
        """Return whether any topic that was noted has no answer yet."""
        return bool(self._doubted or self._marks)

    def close(self) -> None:
        """Ask no more; another object may ask the same socket then."""
        self._publisher.unbind(self._address)
        self._socket.close(linger=0)
