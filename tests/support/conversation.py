"""Conversations without sockets and without a clock: real sessions over a real hub, with a feeder of the test.

A client checks each frame when it is written: an ack for every id, and no data of a topic before its ack or after the
ack that ends it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from gateway.costs.budget import Budget
from gateway.costs.shares import Shares, limits_of_worker
from gateway.costs.slices import Slices
from gateway.costs.turns import Turns
from gateway.costs.views import Views
from gateway.counters import SentByPath
from gateway.endpoints.urls import ENDPOINTS
from gateway.hub import Hub
from gateway.keys.entry import Entry
from gateway.sending.flushes import Flushes
from gateway.sending.pool import Pool
from gateway.sending.sender import EXTENSION, PreparedSender
from gateway.session import Session
from qmt_bridge.config import Config
from qmt_bridge.errors import BadCode
from qmt_bridge.wire import frames
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import TopicState
from qmt_bridge.wire.topics import Topic, quote_topic, whole_topic

MARKETS = {"SH": ["600519.SH", "600000.SH", "601988.SH"], "SZ": ["000001.SZ", "000002.SZ"]}
CODES = [code for codes in MARKETS.values() for code in codes]
PERIODS = ("tick", "1m")
PAD = "x" * 400
TOPICS = [*map(whole_topic, (*MARKETS, *CODES)), *(quote_topic(code, period) for code in CODES for period in PERIODS)]
# A folder that does not exist, so it has no keys.
NOWHERE = "nowhere"
# What closes a session whose client asked for mode "all" and did not read.
SLOW = 1013


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time stands still until the test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    # What the gateway's modules use of the module `time`.
    monotonic = time

    def time_ns(self) -> int:
        return int(self.now * 1e9)


class FakeFeeder:
    """The hub's upstream: it keeps last values, and answers when the test says so."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.hub = Hub(self)
        self.epoch = 1
        self.subscribed: set[Topic] = set()
        self.refused: set[Topic] = set()
        self.connected = True
        self.questions: list[tuple[int, Topic]] = []
        # Of each topic its sequence number and the newest record of each code.
        self.seqs: Counter[Topic] = Counter()
        self.values: dict[Topic, dict[str, Any]] = {topic: {} for topic in TOPICS}
        self._number = 0
        self._asked = 0

    def subscribe(self, topic: Topic) -> None:
        assert topic not in self.subscribed
        self.subscribed.add(topic)

    def unsubscribe(self, topic: Topic) -> None:
        self.subscribed.remove(topic)

    def ask(self, topics: list[Topic], after: JournalPosition | None) -> int | None:
        if not self.connected:
            return None
        self._asked += 1
        self.questions += [(self._asked, topic) for topic in topics]
        return self._asked

    def answer(self, now: float, *, undecided: bool = False) -> None:
        """Answer one question; the source may not have decided yet (`undecided`)."""
        number, topic = self.questions.pop(0 if self.rng.random() < 0.7 else self.rng.randrange(len(self.questions)))
        if topic in self.refused:
            refused = TopicState(number, topic, "refused", "not served", "upstream_refused", self.epoch)
            self.hub.answer(refused, now)
            return
        if undecided and not self.seqs[topic]:
            self.hub.answer(TopicState(number, topic, "pending", epoch=self.epoch), now)
            return
        parts = list(self._parts(topic)) or [None]
        for index, part in enumerate(parts):
            more = index + 1 < len(parts)
            state = TopicState(number, topic, "live", epoch=self.epoch, seq=self.seqs[topic], body=part, more=more)
            self.hub.answer(state, now)

    def publish(self, topic: Topic, now: float, *, lost: bool = False) -> None:
        """Publish records of some codes of a topic, which may be lost on the way."""
        codes = codes_of(topic)
        self.publish_codes(topic, self.rng.sample(codes, self.rng.randint(1, len(codes))), now, lost=lost)

    def publish_codes(self, topic: Topic, codes: list[str], now: float, *, lost: bool = False) -> None:
        self._number += 1
        record = {"t": topic, "n": self._number, "time": self._number, "pad": PAD * self.rng.choice((1, 1, 4))}
        body = {code: record if topic.startswith("whole") else [record] for code in codes}
        self.values[topic] |= body
        self.seqs[topic] += 1
        if not lost and topic in self.subscribed:
            frame = Frame(topic, self.epoch, self.seqs[topic], 1, 1, frames.encode(body))
            self.hub.receive(frame, now)

    def _parts(self, topic: Topic) -> Iterator[bytes]:
        items = list(self.values[topic].items())
        for first in range(0, len(items), 2):
            yield frames.encode(dict(items[first : first + 2]))


class Talker:
    """One client of a session: sends requests, reads at its own pace, and checks what is written to it."""

    deflates = False
    full = False

    def __init__(self, host: Any, path: str, rng: random.Random, *, slow: bool) -> None:
        self.path = path
        self.field = "codes" if path == "/ws/whole_quote" else "stocks"
        self.rng = rng
        self.reads = not slow
        self.wants_all = rng.random() < 0.2
        # Set by the sender.
        self.sender: PreparedSender
        self.answered: Counter[int] = Counter()
        self.requests: dict[int, dict[str, Any]] = {}
        # What the client knows to be subscribed, what may send it data, and the request that ended a topic last.
        self.held: set[Topic] = set()
        self.open: set[Topic] = set()
        self.ended_by: dict[Topic, int] = {}
        # The newest number of each code of a topic, and the frames received.
        self.newest: dict[tuple[str, str], int] = {}
        self.frames: list[dict[str, Any]] = []
        self.close_code: int | None = None
        self.faults: list[str] = []
        self.lossless = False
        self._pings: list[bytes] = []
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        scope: Any = {"path": path, "query_string": b"ctl=1", "headers": [], "extensions": {EXTENSION: self}}
        scope |= {"scheme": "ws", "client": ("test", 1)}
        self.session = Session(host, scope, self._inbox.get, self._send)
        self.task = asyncio.get_running_loop().create_task(self.session.run(ENDPOINTS[path]))

    # The transport.

    def forget_handshake(self) -> None:
        pass

    def peer_silence(self) -> float:
        return 0.0

    def refund(self) -> None:
        pass

    def abort(self) -> None:
        self.close_code = SLOW

    def write(self, written: bytes) -> bool:
        while written:
            size, head = written[1], 2
            if size == 126:
                size, head = int.from_bytes(written[2:4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(written[2:10], "big"), 10
            payload, first, written = written[head : head + size], written[0], written[head + size :]
            if first == 0x89:
                self._pings.append(payload)
            else:
                frame = json.loads(payload)
                try:
                    self._take(frame)
                except AssertionError as exc:
                    # The sender would take it for a failure of its own.
                    self.faults.append(str(exc))
        return True

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "websocket.close":
            self.close_code = message["code"]

    def read(self) -> None:
        """Read what was written: the library answers the pings."""
        pings, self._pings = self._pings, []
        for payload in pings:
            self.sender.acknowledge(payload)

    # The client.

    @property
    def gone(self) -> bool:
        return self.task.done()

    def leave(self) -> None:
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1000})

    def ask(self, request: dict[str, Any]) -> None:
        number = len(self.requests) + 1
        self.requests[number] = request
        # No frame of these is left out, so a client that does not read is closed once its outbox is full.
        self.lossless = self.lossless or request.get("mode") == "all" or request.get("period") == "1m"
        self._inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({**request, "id": number})})

    def story(self) -> str:
        """Return what went wrong, the newest requests, and the newest frames without their padding."""
        told = [*self.faults, *map(str, list(self.requests.items())[-25:]), *(str(each) for each in self.frames[-25:])]
        return "\n".join(told).replace(PAD, "")

    def topics(self, request: dict[str, Any], names: list[str]) -> set[Topic]:
        """Return the topics of some of a request's codes, without those that are no codes."""
        period = request.get("period", "tick")
        found = set()
        for name in names:
            with suppress(BadCode):
                found.add(whole_topic(name) if self.path == "/ws/whole_quote" else quote_topic(name, period))
        return found

    def _take(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        number = frame.get("id")
        if number is not None:
            self.answered[number] += 1
            assert self.answered[number] == 1, f"two answers: {frame}"
        match frame.get("type"):
            case "subscribed":
                self._take_ack(number, frame)
            case "unsubscribed":
                ended = self._by_period(frame, frame["removed"])
                self.held -= ended
                self.open -= ended
                self.ended_by |= dict.fromkeys(ended, number or 0)
                self._forget(ended)
            case "error":
                ended = self.topics(frame, [frame["symbol"]] if "symbol" in frame else [])
                self.held -= ended
                self.open -= ended
            case "data":
                self._take_data(frame["data"])
            case None:
                self._take_data(frame)

    def _take_ack(self, number: int | None, frame: dict[str, Any]) -> None:
        assert number is not None
        request = self.requests[number]
        rejected = self.topics(request, [each["code"] for each in frame["rejected"]])
        self.held |= self._by_period(frame, frame["added"])
        self.held -= rejected
        self.open -= rejected
        named = self.topics(request, request[self.field]) - rejected
        self._forget(self.topics(request, list(request.get("resume", ()))))
        self.open |= {topic for topic in named if number > self.ended_by.get(topic, 0)}

    def _forget(self, topics: set[Topic]) -> None:
        """Accept older values: the next subscription may begin with some that this client had before."""
        self.newest = {key: value for key, value in self.newest.items() if key[0] not in topics}

    def _by_period(self, frame: dict[str, Any], names: list[str]) -> set[Topic]:
        by_period = frame.get("by_period", {"tick": names})
        assert {name for each in by_period.values() for name in each} == set(names), frame
        return set().union(*(self.topics({"period": period}, each) for period, each in by_period.items()))

    def _take_data(self, body: dict[str, Any]) -> None:
        for code, value in body.items():
            for record in value if isinstance(value, list) else [value]:
                topic, number = record["t"], record["n"]
                assert topic in self.open, f"{topic} without an ack, or after its end"
                assert number >= self.newest.get((topic, code), 0), f"{topic} went back to {number}"
                self.newest[topic, code] = number


class World:
    """A worker's sessions, the hub and the feeder, moved step by step."""

    def __init__(self, loop: VirtualLoop, seed: int, **settings: Any) -> None:
        self.rng = random.Random(seed)
        self.loop = loop
        self.feeder = FakeFeeder(self.rng)
        self.flushes = Flushes()
        config = Config(max_rate=1_000_000, max_code_rate=10_000_000, data_dir=NOWHERE, **settings)
        self.host: Any = SimpleNamespace(
            config=config,
            sent=SentByPath(),
            flushes=self.flushes,
            pool=Pool(2**30),
            limited=Counter(),
            budget=Budget(1e9, 1_000_000, loop.now),
            # A turn of the loop has time for some pieces of work, or for none.
            slices=Slices(lambda: self.rng.choice((0.0, 0.0, 0.0, 1.0))),
            turns=Turns(),
            opening_turns=Turns(),
            views=Views(config.max_views),
            shares=Shares(limits_of_worker(1000, 1000, 16, 1), 0.0),
            sessions={},
            entry=Entry(config),
            feed=SimpleNamespace(hub=self.feeder.hub),
            welcome=lambda: {"type": "welcome"},
            note=lambda kind, text: None,
        )
        self.talkers: list[Talker] = []
        self.failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.failures.append(context))

    async def step(self, seconds: float = 0.0) -> None:
        """Let some time pass, then run what is ready; those that read do so."""
        self.loop.now += seconds
        self.feeder.hub.expire(self.loop.now)
        # A request passes through a queue, the session's task, `later` and a flush.
        for _ in range(self.rng.choice((1, 2, 8))):
            await asyncio.sleep(0)
        for talker in self.talkers:
            if talker.reads:
                talker.read()
            assert not talker.faults, talker.story()
        assert not self.failures, self.failures

    async def settle(self) -> None:
        """Let every question be answered, every client read, and every timer pass."""
        self.feeder.connected = True
        for talker in self.talkers:
            talker.reads = True
        for _ in range(12):
            while self.feeder.questions:
                self.feeder.answer(self.loop.now)
                await self.step()
            for _ in range(10):
                await self.step(0.04)
            for talker in self.talkers:
                if not talker.gone:
                    talker.session.sender.check(self.loop.now, 1e9)

    def arrive(self, path: str) -> Talker:
        talker = Talker(self.host, path, self.rng, slow=self.rng.random() < 0.5)
        self.talkers.append(talker)
        return talker


def codes_of(topic: Topic) -> list[str]:
    """Return the codes that a topic has records of."""
    name = topic.split("/")[1]
    return MARKETS.get(name, [name])
