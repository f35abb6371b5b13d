"""The store with real sockets: what the feeder publishes is stored and answered, also after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import load_curve, make_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.process import child
from qmt_bridge.sockets import connect_dealer, connect_subscriber
from qmt_bridge.store import app, database
from qmt_bridge.store.app import Store
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole, TopicHistory, decode_history
from qmt_bridge.wire.requests import CatchUp, encode_ask
from qmt_bridge.wire.topics import Topic, quote_topic, whole_topic
from tests.support.ports import ANY_ADDRESSES, free_addresses, free_port, tcp
from tests.support.processes import KILLED, kill
from tests.support.rig import HandDriven
from tests.support.store_asker import Asker, asking, running_store
from tests.support.turns import TurnThread
from tests.support.waiting import DEADLINE, wait_for

CODE = "600519.SH"
TOPIC = quote_topic(CODE)
OTHER = quote_topic("000001.SZ")


class Published:
    """A feeder whose messages the test makes, with one consumer that subscribes `TOPIC`."""

    def __init__(self, config: Config) -> None:
        self.source = HandDriven()
        self._feeder = Feeder(config, self.source)
        self._feeder.start()
        publisher = self._feeder.publisher
        self.epoch = publisher._epoch
        self.config = msgspec.structs.replace(
            config, market_addr=publisher.market_addr, ask_addr=publisher.ask_addr, store_addr="tcp://127.0.0.1:*"
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.consumer = connect_subscriber(self._context, publisher.market_addr, None)
        self.consumer.subscribe(TOPIC.encode())
        self.wait_wanted(TOPIC)
        self._count = 0

    def wait_wanted(self, topic: Topic) -> None:
        wait_for(lambda: topic in self.source.wanted, f"a subscription of {topic}")

    def publish(self, count: int = 1, topic: Topic = TOPIC) -> None:
        for _ in range(count):
            self._count += 1
            tick = {"time": time.time_ns() // 1_000_000, "number": self._count}
            name = topic.split("/")[1]
            self.source.publish(topic, {CODE: tick} if topic.startswith("whole") else {name: [tick]})

    def live(self) -> Frame:
        """Return the next message of the consumer."""
        assert self.consumer.poll(20_000)
        return Frame.from_parts(self.consumer.recv_multipart())

    def stop(self) -> None:
        self.consumer.close(linger=0)
        self._context.term()
        self._feeder.stop()


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Published]:
    published = Published(Config(**ANY_ADDRESSES, data_dir=str(tmp_path / "feeder"), grace=0.0))
    yield published
    published.stop()


@pytest.fixture
def config(feed: Published, tmp_path: Path) -> Config:
    # What is stored, and nothing else.
    return msgspec.structs.replace(feed.config, data_dir=str(tmp_path / "data"), backfill=False)


@contextmanager
def stored(config: Config, *topics: Topic) -> Iterator[tuple[TurnThread[Store], Asker]]:
    with running_store(config, topics) as (thread, reached), asking(reached.store_addr) as asker:
        yield thread, asker


def numbers(answers: list[TopicHistory]) -> list[int]:
    return [frame.seq for answer in answers for frame in answer.frames]


def follow(feed: Published, asker: Asker, topic: Topic = TOPIC) -> int:
    """Publish until the store has a message: a subscription takes a moment to reach the feeder. Return its number."""
    answer = asker.ask(topic, start=0x18000000000)

    def arrived() -> bool:
        nonlocal answer
        feed.publish(topic=topic)
        answer = asker.ask(topic)
        return answer.seq > 0

    wait_for(arrived, "the first message in the store")
    return asker.ask(topic, start="00:00").frames[0].seq


def wait_stored(asker: Asker, seq: int, topic: Topic = TOPIC) -> None:
    wait_for(lambda: asker.ask(topic).seq >= seq, f"the message {seq} in the store")


# What it follows


def test_what_others_subscribe_is_stored(feed: Published, config: Config) -> None:
    with stored(config) as (_, asker):
        first = follow(feed, asker)
        feed.publish(50)
        last = feed.epoch, asker
        while (frame := feed.live()).seq < first + 50:
            last = frame.epoch, frame.seq
        wait_stored(asker, frame.seq)
        answers = asker.all(TOPIC, room=700, start="00:00")
        assert numbers(answers)[: 1 + 50] == list(range(first, first + 51))
        assert last[0] == answers[0].epoch == feed.epoch


def test_a_prefix_makes_the_feeder_subscribe_nothing(feed: Published, config: Config) -> None:
    with stored(config) as (_, asker):
        follow(feed, asker)
        assert feed.source.wanted == [TOPIC]
        assert asker.ask(OTHER).holes == [Hole("not_stored")]


def test_a_topic_of_its_own_is_stored_without_a_consumer(feed: Published, config: Config) -> None:
    with stored(config, OTHER, whole_topic("SH")) as (_, asker):
        feed.wait_wanted(OTHER)
        feed.wait_wanted(whole_topic("SH"))
        feed.publish(topic=OTHER)
        feed.publish(topic=whole_topic("SH"))
        wait_stored(asker, 1, OTHER)
        wait_stored(asker, 1, whole_topic("SH"))
        assert asker.ask(OTHER, start="00:00").frames[0].seq == 1


def test_a_topic_of_its_own_is_followed_while_connected(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"store_addr": "tcp://127.0.0.1:*", "grace": 0.0, "backfill": False}
    config = Config(**free_addresses(), data_dir=str(tmp_path / "feeder"), **settings)
    soon = (time.time_ns() + 3600 * 10**9) // 1_000_000
    with stored(msgspec.structs.replace(config, data_dir=str(tmp_path / "data")), OTHER) as (_, asker):
        assert asker.ask(OTHER, start=soon).holes == [Hole("store_began")]
        feed = Published(config)
        try:
            wait_for(lambda: asker.ask(OTHER, start=soon).holes == [], "the topic to be followed")
        finally:
            feed.stop()
        wait_for(lambda: asker.ask(OTHER, start=soon).holes == [Hole("store_began")], "the end of the connection")


def test_store_and_live_stream_have_every_message_once(feed: Published, config: Config) -> None:
    """As a gateway reads it: subscribe first, then ask until the store has reached the first live message."""
    with stored(config, OTHER) as (_, asker):
        feed.wait_wanted(OTHER)
        feed.publish(200, OTHER)
        wait_stored(asker, 200, OTHER)
        feed.consumer.subscribe(OTHER.encode())
        answers: list[TopicHistory] = []
        live: list[Frame] = []
        answer = asker.ask(OTHER, start="00:00", room=2000)
        while not (live and answer.seq >= live[0].seq):
            feed.publish(3, OTHER)
            while feed.consumer.poll(0):
                live.append(Frame.from_parts(feed.consumer.recv_multipart()))
            answers.append(answer)
            answer = asker.ask(OTHER, epoch=answer.epoch, after=answer.seq, room=2000)
        answers.append(answer)
        read = [frame.frame(OTHER) for each in answers for frame in each.frames]
        joined = read + [frame for frame in live if frame.seq > read[-1].seq]
        assert [frame.seq for frame in joined] == list(range(1, joined[-1].seq + 1))
        # The store has them as they were published.
        by_number = {frame.seq: frame for frame in read}
        both = [frame for frame in live if frame.seq in by_number]
        assert both
        for frame in both:
            assert by_number[frame.seq].to_parts() == frame.to_parts()
        assert [hole.reason for each in answers for hole in each.holes] == ["store_began"]


def test_what_is_no_message_is_left_out_and_counted(feed: Published, config: Config) -> None:
    with stored(config) as (thread, asker):
        follow(feed, asker)
        publisher = feed._feeder.publisher
        before = asker.status()
        publisher.inbox.calls.append(lambda: publisher._doors.market.send_multipart([b"quote/x", b"{}"]))
        publisher.inbox.calls.append(
            lambda: publisher._doors.market.send_multipart(Frame(TOPIC, feed.epoch, 10**6, 1, 1, b"no JSON").to_parts())
        )
        publisher.inbox.wake()
        wait_for(lambda: asker.status().left_out == before.left_out + 2, "two messages to be left out")
        assert asker.ask(TOPIC).seq < 10**6
        assert thread.failure is None


# Kills


class Process:
    """A `qmt-bridge store`."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = msgspec.structs.replace(config, store_addr=tcp(free_port()), data_dir=str(folder))
        self.start()

    def start(self) -> None:
        env = child.environment(self.config, ("market_addr", "store_addr", "data_dir", "backfill"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qmt_bridge.cli", "store", "--until-eof"],
            env=env,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def kill(self) -> None:
        kill(self.process.pid)
        assert self.process.wait(DEADLINE) == KILLED
        self._close()

    def stop(self) -> tuple[int, str]:
        """Ask it to end; return its exit code and what it has said."""
        _, said = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, said

    def _close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        self.process.stderr.close()


def test_killed_store_has_all_that_it_had_answered(feed: Published, config: Config, tmp_path: Path) -> None:
    store = Process(config, tmp_path / "killed")
    try:
        for _ in range(3):
            with asking(store.config.store_addr) as asker:
                begun = asker.ask(TOPIC).seq
                feed.publish(300)

                def grown(asker: Asker = asker, begun: int = begun) -> bool:
                    # A subscription takes a moment to reach the feeder.
                    feed.publish()
                    return asker.ask(TOPIC).seq > begun

                wait_for(grown, "messages in the store")
                feed.publish(300)
                answered = asker.all(TOPIC, start="00:00")
            had = [frame for answer in answered for frame in answer.frames]
            store.kill()
            # It misses these.
            feed.publish(20)
            store.start()
            with asking(store.config.store_addr) as asker:
                answers = asker.all(TOPIC, room=5000, start="00:00")
                has = [frame for answer in answers for frame in answer.frames]
                assert has[: len(had)] == had
        # Every number is there, or in a gap that is told.
        with asking(store.config.store_addr) as asker:
            wait_for(grown_after(feed, asker, has[-1].seq), "a message behind the last gap")
            answers = asker.all(TOPIC, start="00:00")
        present = set(numbers(answers))
        missing: set[int] = set()
        for hole in (hole for answer in answers for hole in answer.holes if hole.reason == "gap"):
            assert hole.after is not None
            assert hole.before is not None
            missing.update(range(hole.after.seq + 1, hole.before.seq))
        assert missing
        assert not missing & present
        assert missing | present == set(range(min(present), max(present) + 1))
        code, said = store.stop()
        assert code == 0, said
        assert "Traceback" not in said
    finally:
        store.process.kill()
        store.process.wait()


def grown_after(feed: Published, asker: Asker, seq: int) -> SimpleNamespace:
    def look() -> bool:
        feed.publish()
        return asker.ask(TOPIC).seq > seq

    return look  # type: ignore[return-value]


def test_feeder_that_was_started_anew_is_told(feed: Published, tmp_path: Path) -> None:
    places = free_addresses()
    config = Config(**places, data_dir=str(tmp_path / "again"), store_addr="tcp://127.0.0.1:*", grace=0.0)
    first = Published(config)
    with stored(msgspec.structs.replace(config, data_dir=str(tmp_path / "data2"))) as (_, asker):
        follow(first, asker)
        before = asker.ask(TOPIC).position
        first.stop()
        second = Published(config)
        try:
            wait_for(grown_epoch(second, asker), "a message of the new feeder")
            holes = [hole for answer in asker.all(TOPIC, start="00:00") for hole in answer.holes]
        finally:
            second.stop()
    [restart] = [hole for hole in holes if hole.reason == "restart"]
    assert restart.after is not None
    assert restart.after >= before
    assert restart.before is not None
    assert restart.before.epoch == second.epoch > first.epoch


def grown_epoch(feed: Published, asker: Asker) -> SimpleNamespace:
    def look() -> bool:
        feed.publish()
        return asker.ask(TOPIC).epoch == feed.epoch

    return look  # type: ignore[return-value]


# Askers


@pytest.mark.parametrize(
    "question",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"ask":"catch_up","id":1}',
        b'{"ask":"catch_up","id":1,"topics":"quote/"}',
        b'{"ask":"catch_up","id":99999999999999999999999,"topics":[]}',
        b'{"ask":"start_download","id":1,"stocks":["600519.SH"],"period":"1d"}',
    ],
)
def test_garbage_is_refused_counted_and_costs_nobody_else(feed: Published, config: Config, question: bytes) -> None:
    with stored(config) as (_, asker):
        asker.socket.send(question)
        assert asker.status().refused == 1
        follow(feed, asker)


def test_envelope_without_bounds_is_refused(feed: Published, config: Config) -> None:
    with stored(config) as (_, asker):
        asker.socket.send_multipart([b"x"] * 100 + [encode_ask(CatchUp(1, [TOPIC]))])
        asker.socket.send_multipart([b"x" * 2000, encode_ask(CatchUp(1, [TOPIC]))])
        assert asker.status().refused == 2


def test_req_socket_gets_its_answer(config: Config) -> None:
    with stored(config) as (thread, _), zmq.Context() as context, context.socket(zmq.REQ) as asker:
        asker.linger = 0
        asker.connect(thread.service.address)
        asker.send(encode_ask(CatchUp(5, [TOPIC])))
        assert asker.poll(20_000)
        assert decode_history(asker.recv()).id == 5


def test_each_topic_of_a_question_is_answered_once(config: Config) -> None:
    with stored(config) as (_, asker):
        asker.send([TOPIC, OTHER, TOPIC, "nonsense"])
        answers = [asker.receive() for _ in range(3)]
        assert [answer.topic for answer in answers] == [TOPIC, OTHER, "nonsense"]
        assert answers[2].state == "refused"
        assert asker.status().refused == 0


def test_asker_that_does_not_read_delays_none_and_loses_nothing(feed: Published, config: Config) -> None:
    with (
        stored(config, OTHER) as (thread, asker),
        zmq.Context() as context,
        context.socket(zmq.DEALER) as greedy,
    ):
        feed.wait_wanted(OTHER)
        pad = "x" * 60_000
        for _ in range(100):
            feed.source.publish(OTHER, {"000001.SZ": [{"time": time.time_ns() // 1_000_000, "pad": pad}]})
        wait_stored(asker, 100, OTHER)
        greedy.linger = 0
        # Its own end keeps hardly anything for it.
        greedy.rcvhwm = 1
        greedy.connect(thread.service.address)
        for number in range(100):
            greedy.send(encode_ask(CatchUp(number, [OTHER], start="00:00", room=2**20)))
        askers = thread.service._service._askers
        wait_for(lambda: askers._full, "a full connection")
        for _ in range(5):
            assert len(asker.ask(OTHER, start="00:00", room=2**20).frames) > 10
        feed.publish(topic=OTHER)
        wait_stored(asker, 101, OTHER)
        # What waits in the store are its questions: of a hundred answers hardly any was made.
        assert sum(len(each.unsent[1]) for each in askers._askers.values() if each.unsent is not None) < 2 * 2**20
        for number in range(100):
            assert greedy.poll(20_000)
            answer = decode_history(greedy.recv())
            assert (answer.id, len(answer.frames) > 10) == (number, True)


# What cannot be used


def test_second_store_in_a_folder_is_refused(config: Config) -> None:
    with stored(config), pytest.raises(ConfigError, match="another store has its messages"):
        TurnThread(Store(config, ())).start()


def test_address_in_use_is_refused(config: Config, tmp_path: Path) -> None:
    with stored(config) as (thread, _):
        other = msgspec.structs.replace(config, store_addr=thread.service.address, data_dir=str(tmp_path / "other"))
        with pytest.raises(ConfigError, match="store_addr: cannot listen"):
            TurnThread(Store(other, ())).start()


def test_address_that_other_machines_reach_needs_keys(config: Config) -> None:
    open_address = msgspec.structs.replace(config, store_addr="tcp://0.0.0.0:0")
    with pytest.raises(ConfigError, match="other machines; it needs curve_dir"):
        TurnThread(Store(open_address, ())).start()


def test_folder_that_cannot_be_made_is_refused(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="data_dir: cannot make the folder"):
        TurnThread(Store(msgspec.structs.replace(config, data_dir=str(tmp_path / "file" / "data")), ())).start()


@pytest.mark.skipif(sys.platform == "win32" or os.getuid() == 0, reason="needs a user whom modes keep from writing")
def test_folder_that_cannot_be_written_is_refused(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "store"
    folder.mkdir(parents=True, mode=0o700)
    folder.chmod(0o500)
    with pytest.raises(ConfigError, match="data_dir: cannot open"):
        TurnThread(Store(config, ())).start()


def test_disk_that_fails_ends_the_process_to_be_started_again(
    feed: Published, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise database.DatabaseError("IO error: No space left on device")

    monkeypatch.setattr(database.Database, "write", fail)
    stop = SimpleNamespace(is_set=lambda: feed.publish() is not None)
    assert app.run(config, [TOPIC], stop) == child.TRY_AGAIN  # type: ignore[arg-type]
    assert "No space left on device" in caplog.text


@pytest.mark.parametrize("turns", [0, 3], ids=["at its start", "later"])
def test_folder_that_vanishes_ends_the_process_in_words(
    feed: Published, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, turns: int
) -> None:
    looks = 0

    def disk_usage(folder: Path) -> SimpleNamespace:
        nonlocal looks
        looks += 1
        if looks > turns:
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        return SimpleNamespace(free=app.RESERVE_BYTES * 4)

    monkeypatch.setattr(app, "TRIM_SECONDS", 0.0)
    monkeypatch.setattr(app.shutil, "disk_usage", disk_usage)
    until = time.monotonic() + 20
    stop = SimpleNamespace(is_set=lambda: time.monotonic() > until)
    assert app.run(config, [TOPIC], stop) == child.TRY_AGAIN  # type: ignore[arg-type]
    assert "cannot look at" in caplog.text
    assert "Traceback" not in caplog.text


def test_full_disk_is_told_and_what_it_costs_is_a_gap(
    feed: Published, config: Config, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = app.RESERVE_BYTES * 4
    monkeypatch.setattr(app, "TRIM_SECONDS", 0.01)
    looks = 0

    def disk_usage(_: Path) -> SimpleNamespace:
        nonlocal looks
        looks += 1
        return SimpleNamespace(free=free)

    monkeypatch.setattr(app.shutil, "disk_usage", disk_usage)
    with stored(config) as (_, asker):
        follow(feed, asker)
        free = app.RESERVE_BYTES - 1
        wait_for(lambda: asker.status().failure is not None, "the failure")
        before = asker.ask(TOPIC).seq
        lost = asker.status().left_out
        feed.publish(10)
        wait_for(lambda: asker.status().left_out >= lost + 10, "messages to be lost")
        assert len(asker.ask(TOPIC, start="00:00").frames) > 0
        # As long as there is little more, nothing is stored.
        free, seen = app.RESERVE_BYTES, looks
        wait_for(lambda: looks >= seen + 3, "looks at the disk")
        assert asker.status().failure is not None
        feed.publish(10)
        wait_for(lambda: asker.status().left_out >= lost + 20, "messages to be lost")
        free = app.RESERVE_BYTES * 2
        wait_for(lambda: asker.status().failure is None, "the end of the failure")
        wait_for(grown_after(feed, asker, before), "a message after the failure")
        [gap] = [hole for hole in asker.ask(TOPIC, start="00:00").holes if hole.reason == "gap"]
    assert gap.after is not None
    assert gap.before is not None
    assert (gap.after.seq, gap.before.seq - gap.after.seq > 20) == (before, True)
    assert "MiB left: nothing is stored until it has" in caplog.text


# Keys


def test_with_keys_only_clients_with_one_are_answered(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    make_keys(keys)
    places = free_addresses()
    config = Config(**places, data_dir=str(tmp_path / "data"), curve_dir=str(keys), store_addr="tcp://127.0.0.1:*")
    feeder = Feeder(msgspec.structs.replace(config, data_dir=str(tmp_path / "feeder")), HandDriven())
    feeder.start()
    with ExitStack() as stack:
        stack.callback(feeder.stop)
        thread, _ = stack.enter_context(running_store(config, [TOPIC]))
        # Its own subscription has passed the feeder's keys.
        source = feeder.source
        assert isinstance(source, HandDriven)
        wait_for(lambda: TOPIC in source.wanted, "the subscription of the store")
        context = stack.enter_context(zmq.Context())
        known = stack.enter_context(
            connect_dealer(context, thread.service.address, load_curve(str(keys), "gateway"), name="store_addr")
        )
        stranger = stack.enter_context(connect_dealer(context, thread.service.address, None, name="store_addr"))
        assert known.poll(20_000, zmq.POLLOUT)
        known.send(encode_ask(CatchUp(9, [TOPIC])))
        assert known.poll(20_000)
        assert decode_history(known.recv()).id == 9
        assert not stranger.poll(0, zmq.POLLOUT)
        # A key that is taken back ends its connections.
        for file in (keys / "clients").iterdir():
            file.unlink()
        wait_for(lambda: not known.poll(0, zmq.POLLOUT), "the end of the connection")
