"""The demand that a relay passes up to the feeder, and what of it was cancelled by clients that had not subscribed it.

libzmq passes up an unsubscription of a topic also if the client has no subscription of it and others have, which would
get nothing any more (`qmt_bridge.demand.departures`). The proxy tells of each message in its capture socket, from which
libzmq filters the market data. If something was cancelled, the relay stops its proxy for a moment, and each topic is
asked about: one that has a subscriber is subscribed again.
"""

from __future__ import annotations

from itertools import count, islice

import zmq

from qmt_bridge.demand.departures import Departures

# A context must not have two sockets at the same address.
_numbers = count()
# Subscriptions and unsubscriptions that may wait between two looks. What is lost beyond is missed in the count.
_MARK = 100_000
# Topics that are followed; the cancel of another one is not doubted.
MOST_TOPICS = 200_000
# Topics that are asked about in one stop: some 10 ms, in which messages wait.
MOST_DOUBTS = 500
_CANCEL, _SUBSCRIBE = b"\0", b"\1"
_MARKS = 2
_ANSWER_MS = 5000


class Demand:
    """Of one relay; one thread uses it, and what takes `up` or the sockets of the proxy while that does not run."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], down: zmq.Socket[bytes]) -> None:
        self._down = down
        inproc = f"inproc://demand.{next(_numbers)}"
        # The capture socket of the proxy.
        self.capture = context.socket(zmq.PUB)
        self.capture.sndhwm = _MARK
        self.capture.bind(inproc)
        self._captured = context.socket(zmq.SUB)
        self._captured.rcvhwm = _MARK
        self._captured.connect(inproc)
        for first in (_CANCEL, _SUBSCRIBE):
            self._captured.subscribe(first)
        # Has it take the two filters now: what is sent before would be lost.
        self.capture.getsockopt(zmq.EVENTS)
        self._departures = Departures(context, down)
        # How much was passed up, as far as it was seen, and the topics that are subscribed above by that.
        self._heard = 0
        self._wanted: dict[str, None] = {}
        # Topics that were cancelled, in the order of that.
        self._doubted: dict[str, None] = {}

    def begin(self) -> None:
        """Count anew: a proxy begins, and counts what it passes up."""
        self._heard = 0

    def is_doubted(self, passed: int) -> bool:
        """Read what was passed up, `passed` messages by the count of the proxy; return whether a topic is in doubt."""
        try:
            while True:
                self._note(self._captured.recv(zmq.NOBLOCK))
        except zmq.Again:
            pass
        if passed > self._heard:
            # A part of a message may be a cancel, and does not come here if the first part is none.
            self._heard = passed
            self.doubt_all()
        return bool(self._doubted)

    def doubt_all(self) -> None:
        """Doubt every topic: what was passed up is not known."""
        self._doubted |= self._wanted

    def restore(self, up: zmq.Socket[bytes]) -> tuple[int, int]:
        """Ask about topics in doubt, and subscribe those again that are held; only while the proxy does not run.

        Return how many were held, and how much was passed up here in place of the proxy.
        """
        held = dict.fromkeys(islice(self._doubted, MOST_DOUBTS))
        for topic in held:
            del self._doubted[topic]
            self._departures.doubt(topic)
        self._departures.ask()
        passed, marks = 0, 0 if held else _MARKS
        while marks < _MARKS:
            if not self._down.poll(_ANSWER_MS):
                raise RuntimeError("the publisher of a relay does not answer which topics have a subscriber")
            said = self._down.recv()
            if self._departures.is_mark(said):
                marks += 1
            elif not self._departures.are_answers:
                up.send(said)
                self._note(said)
                passed += 1
            elif said[:1] == _SUBSCRIBE:
                # No other subscriber has it.
                topic = said[1:].decode()
                held.pop(topic, None)
                self._wanted.pop(topic, None)
        for topic in held:
            # First the cancel, in case that it is subscribed above: the XSUB counts, and one unsubscription would not
            # end two subscriptions.
            up.send(_CANCEL + topic.encode())
            up.send(_SUBSCRIBE + topic.encode())
            self._wanted[topic] = None
        return len(held), passed

    def close(self) -> None:
        """Tell no more."""
        self._departures.close()
        self._captured.close(linger=0)
        self.capture.close(linger=0)

    def _note(self, said: bytes) -> None:
        self._heard += 1
        # Topics are ASCII; the feeder refuses others.
        if not said.isascii():
            return
        topic = said[1:].decode()
        if said[:1] == _CANCEL:
            # A client may cancel any text: what was never subscribed is missed by none.
            if topic in self._wanted:
                self._doubted[topic] = None
        elif said[:1] == _SUBSCRIBE:
            # The first subscriber: the topic had none.
            self._doubted.pop(topic, None)
            if len(self._wanted) < MOST_TOPICS:
                self._wanted[topic] = None
