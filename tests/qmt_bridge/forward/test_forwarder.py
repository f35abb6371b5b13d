"""A forwarder with real sockets and CURVE on both sides: messages, demand, questions, and who may have them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import Curve, add_client, load_curve, make_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.forward import app, questions
from qmt_bridge.forward.app import Forwarder
from qmt_bridge.handshakes import Links, Trouble
from qmt_bridge.process.child import TRY_AGAIN
from qmt_bridge.process.stop import Stop
from qmt_bridge.system import clock
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import Ask, CatchUp, DownloadStarted, StartDownload, TopicState, decode_reply, encode_ask
from qmt_bridge.wire.survey import Attend, Found, Question, Roll, Survey
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC, quote_topic
from tests.support.forwarder import ALL_ROLES, LISTENING, forwarder_keys, running_forwarder
from tests.support.ports import ANY_ADDRESSES, ANY_PORT
from tests.support.rig import HandDriven
from tests.support.turns import TurnThread
from tests.support.waiting import SLOWNESS, wait_for
from tests.support.zmtp import MORE, frame, raw_peer

MS = int(20_000 * SLOWNESS)
CODE = "600519.SH"
TICK = quote_topic(CODE)
OTHER = quote_topic("000001.SZ")
Socket = zmq.Socket[bytes]


class Site:
    """A feeder, and the sockets of clients of a forwarder, all closed in the end."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.keys = folder / "keys"
        make_keys(self.keys)
        # All before the folders are read, which is done once a second.
        self.rack = forwarder_keys(self.keys, "rack")
        self.desk, self.lost = (add_client(self.rack, name, ALL_ROLES) for name in ("desk", "lost"))
        self.viewer = add_client(self.rack, "viewer", frozenset(("market",)))
        self.poor = forwarder_keys(self.keys, "poor", frozenset(("market", "trade")))
        self.desk_of_poor = add_client(self.poor, "desk", ALL_ROLES)
        self._closing = closing
        self._context: zmq.Context[Socket] = zmq.Context()
        closing.callback(self._context.destroy, 0)
        self._data = str(folder / "data")
        self.config = Config(**ANY_ADDRESSES, data_dir=self._data, grace=0.1, curve_dir=str(self.keys))
        self.config = msgspec.structs.replace(self.config, trade_addr=ANY_PORT, trade_ask_addr="")
        self.number = 0
        self.start_feeder()
        closing.callback(lambda: self.feeder.stop())

    def start_feeder(self) -> None:
        self.source = HandDriven()
        self.feeder = Feeder(self.config, self.source)
        self.feeder.start()
        publisher = self.feeder.publisher
        self.config = msgspec.structs.replace(
            self.config,
            market_addr=publisher.market_addr,
            trade_addr=publisher.trade_addr,
            ask_addr=publisher.ask_addr,
        )

    def settings(self, keys: Path | None = None, **changes: Any) -> Config:
        """Return the settings of a forwarder beside the feeder."""
        return msgspec.structs.replace(self.config, **LISTENING | {"curve_dir": str(keys or self.rack)} | changes)

    def forward(self, keys: Path | None = None, **changes: Any) -> TurnThread[Forwarder]:
        return self._closing.enter_context(running_forwarder(self.settings(keys, **changes)))

    def subscribe(self, forwarder: TurnThread[Forwarder], keys: Path, *topics: str, kind: str = "market") -> Socket:
        address = forwarder.service.addresses[kind]
        socket = sockets.connect_subscriber(self._context, address, load_curve(str(keys), "gateway"))
        for topic in topics:
            socket.subscribe(topic)
        return self._kept(socket)

    def asker(self, forwarder: TurnThread[Forwarder], keys: Path, mark: int = sockets.ASKER_MARK) -> Socket:
        address = forwarder.service.addresses["ask"]
        curve = load_curve(str(keys), "gateway")
        socket = self._kept(sockets.connect_dealer(self._context, address, curve, mark=mark))
        assert socket.poll(MS, zmq.POLLOUT), "no connection"
        return socket

    def _kept(self, socket: Socket) -> Socket:
        self._closing.callback(socket.close, 0)
        return socket

    def publish(self, code: str = CODE) -> None:
        self.number += 1
        self.source.publish(quote_topic(code), {code: [{"time": 1, "n": self.number}]})

    def wanted(self, topic: str = TICK) -> None:
        wait_for(lambda: topic in self.source.wanted, f"a subscription of {topic}")

    def reaches(self, *subscribers: Socket) -> None:
        """Publish until each has a message of `TICK`: a subscription takes a moment to come to the forwarder."""

        def came() -> bool:
            self.publish()
            return all(subscriber.poll(20) for subscriber in subscribers)

        wait_for(came, "a message")
        for subscriber in subscribers:
            while received(subscriber).data[CODE][0]["n"] != self.number:
                pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as closing:
        yield Site(tmp_path, closing)


def received(socket: Socket) -> Frame:
    assert socket.poll(MS), "no message"
    return Frame.from_parts(socket.recv_multipart())


def ask(socket: Socket, question: Ask) -> Any:
    socket.send(encode_ask(question))
    return reply(socket)


def reply(socket: Socket) -> Any:
    assert socket.poll(MS), "no answer"
    return decode_reply(socket.recv())


# Messages and demand


def test_messages_pass_as_they_are_to_each_subscriber(site: Site) -> None:
    forwarder = site.forward()
    first, second = (site.subscribe(forwarder, site.desk, TICK) for _ in range(2))
    direct = sockets.connect_subscriber(site._context, site.config.market_addr, load_curve(str(site.keys), "gateway"))
    site._kept(direct).subscribe(TICK)
    site.reaches(first, second, direct)
    for _ in range(3):
        site.publish()
    for _ in range(3):
        parts = [socket.recv_multipart() for socket in (first, second, direct) if socket.poll(MS)]
        assert parts[0] == parts[1] == parts[2]


def test_topic_is_given_back_after_the_last_subscriber(site: Site) -> None:
    """With XPUB_VERBOSE it would stay subscribed."""
    forwarder = site.forward()
    several = [site.subscribe(forwarder, site.desk, TICK) for _ in range(3)]
    site.reaches(*several)
    for socket in several[:2]:
        socket.close(linger=0)
    site.reaches(several[2])
    several[2].close(linger=0)
    wait_for(lambda: TICK not in site.source.wanted, "the end of the subscription")


def test_second_subscriber_gets_the_last_value(site: Site) -> None:
    forwarder = site.forward()
    site.reaches(site.subscribe(forwarder, site.desk, TICK))
    site.subscribe(forwarder, site.desk, TICK)
    state = ask(site.asker(forwarder, site.desk), CatchUp(1, [TICK]))
    assert state.state == "live"
    assert json.loads(state.body)[CODE][0]["n"] == site.number


def test_trade_events_and_their_journal_pass(site: Site) -> None:
    forwarder = site.forward()
    trades = site.subscribe(forwarder, site.desk, ALL_TRADES, kind="trade")

    def came() -> int:
        site.source.trade("order")
        return trades.poll(20)

    wait_for(came, "a trade event")
    last = received(trades).seq
    answer = ask(site.asker(forwarder, site.desk), CatchUp(1, [ALL_TRADES], after=0))
    assert [event["seq"] for event in json.loads(answer.body)][:last] == list(range(1, last + 1))


@pytest.fixture
def relayed(site: Site, tmp_path: Path) -> Iterator[tuple[HandDriven, TurnThread[Forwarder], Socket]]:
    """A feeder without keys, a forwarder behind it, and a subscriber of `TICK` behind that."""
    config = Config(**ANY_ADDRESSES, data_dir=str(tmp_path / "open"), grace=0.1, open_trade_addr=True)
    config = msgspec.structs.replace(config, trade_addr=ANY_PORT, trade_ask_addr="")
    source = HandDriven()
    feeder = Feeder(config, source)
    feeder.start()
    try:
        where = feeder.publisher
        reached = {"market_addr": where.market_addr, "trade_addr": where.trade_addr, "ask_addr": where.ask_addr}
        with running_forwarder(msgspec.structs.replace(config, **LISTENING | reached)) as forwarder:
            address = forwarder.service.addresses["market"]
            good = site._kept(sockets.connect_subscriber(site._context, address, None))
            good.subscribe(TICK)
            wait_for(lambda: TICK in source.wanted, "the subscription")
            yield source, forwarder, good
    finally:
        feeder.stop()


CANCEL = b"\0" + TICK.encode()
PARTS = frame(MORE, b"quote/odd") + frame(0, CANCEL)
# It ends the proxy, which begins to count anew: the heartbeat has the subscription already.
ODD = frame(MORE, b"odd") + frame(0, b"\1" + STATUS_TOPIC.encode())


@pytest.mark.parametrize(
    ("before", "cancel"), [(b"", frame(0, CANCEL)), (b"", PARTS), (ODD, PARTS)], ids=["one", "parts", "odd"]
)
def test_topic_that_another_client_cancels_comes_again(
    relayed: tuple[HandDriven, TurnThread[Forwarder], Socket],
    before: bytes,
    cancel: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source, forwarder, good = relayed
    relay = forwarder.service._relays["market"]
    # More than the messages that follow.
    for number in range(20):
        good.subscribe(f"quote/{number}")
    wait_for(lambda: relay._demand._heard >= 20, "the subscriptions")
    with raw_peer(forwarder.service.addresses["market"], b"XSUB") as peer:
        peer.sendall(before)
        wait_for(lambda: relay.odd == bool(before), "the end of the proxy")
        peer.sendall(cancel)
        wait_for(lambda: relay.restored, "the topic to be subscribed again")

        def came() -> bool:
            source.publish(TICK, {CODE: []})
            return bool(good.poll(20))

        wait_for(came, "a message")
    assert "has cancelled what it had not subscribed" in caplog.text
    # It counts once above: the end of its last subscriber ends it.
    good.unsubscribe(TICK)
    wait_for(lambda: TICK not in source.wanted, "the end of the topic")


def test_odd_message_of_a_client_does_not_end_the_relay(
    relayed: tuple[HandDriven, TurnThread[Forwarder], Socket],
) -> None:
    """libzmq's proxy ends when the rest of a message is not there: here it has taken it for a known subscription."""
    source, forwarder, good = relayed
    relay = forwarder.service._relays["market"]
    with raw_peer(forwarder.service.addresses["market"], b"XSUB") as peer:
        peer.sendall(frame(MORE, b"odd") + frame(0, b"\1" + TICK.encode()))
        wait_for(lambda: relay.odd, "the odd message")
        good.subscribe(OTHER)
        wait_for(lambda: OTHER in source.wanted, "the next subscription")
    source.publish(TICK, {CODE: []})
    assert received(good).topic == TICK


def test_cancel_of_what_has_no_subscriber_stops_no_proxy(
    relayed: tuple[HandDriven, TurnThread[Forwarder], Socket],
) -> None:
    _, forwarder, _ = relayed
    relay = forwarder.service._relays["market"]
    proxy = relay._thread
    with raw_peer(forwarder.service.addresses["market"], b"XSUB") as peer:
        for number in range(50):
            peer.sendall(frame(0, b"\0quote/%d" % number))
        # Beside the subscriptions of the heartbeat and of the subscriber.
        wait_for(lambda: relay.passed.demands == 52, "the cancels")
        wait_for(lambda: relay._demand._heard == 52, "a look")
    assert relay._thread is proxy


def test_demand_counts_although_the_proxy_is_stopped(relayed: tuple[HandDriven, TurnThread[Forwarder], Socket]) -> None:
    source, forwarder, good = relayed
    relay = forwarder.service._relays["market"]
    for _ in range(3):
        good.subscribe(OTHER)
        wait_for(lambda: OTHER in source.wanted, "the subscription")
        good.unsubscribe(OTHER)
        wait_for(lambda: OTHER not in source.wanted, "the end of the subscription")
    # The heartbeat's subscription, that of the subscriber, and each of these.
    wait_for(lambda: relay.passed.demands == 8, "the count")
    assert relay.restored == 0


def test_forwarder_whose_proxy_fails_ends_to_be_started_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise zmq.ZMQError(zmq.ENOTSOCK)

    monkeypatch.setattr(zmq, "proxy_steerable", fail)
    assert app.run(site.settings(), Stop()) == TRY_AGAIN


# Keys


def link_trouble(site: Site, address: str, curve: Curve | None) -> Trouble | None:
    """Return why a subscriber has no connection; None once it has one."""
    links = Links()
    subscriber = site._kept(sockets.connect_subscriber(site._context, address, curve, links))
    try:
        wait_for(lambda: links.look(clock.monotonic()) or links.all_up(), "the end of the handshake")
        return links.troubles(clock.monotonic())["market_addr"]
    finally:
        links.leave(subscriber)


def test_client_needs_a_key_and_its_role(site: Site) -> None:
    forwarder = site.forward()
    market, trade = (forwarder.service.addresses[kind] for kind in ("market", "trade"))
    viewer = load_curve(str(site.viewer), "gateway")
    assert link_trouble(site, market, viewer) is None
    assert link_trouble(site, trade, viewer) == Trouble.KEY_REFUSED
    # A key that the feeder admits is none of the forwarder's.
    of_feeder = load_curve(str(site.keys), "gateway")
    assert of_feeder is not None
    assert viewer is not None
    assert link_trouble(site, market, of_feeder._replace(server=viewer.server)) == Trouble.KEY_REFUSED
    assert link_trouble(site, market, None) == Trouble.CURVE_MISSING


def test_roles_of_the_clients_key_hold(site: Site) -> None:
    forwarder = site.forward()
    site.subscribe(forwarder, site.viewer, TICK)
    site.wanted()
    asker = site.asker(forwarder, site.viewer)
    answers = {each.topic: each for each in (ask(asker, CatchUp(1, [ALL_TRADES, TICK], after=0)), reply(asker))}
    assert (answers[ALL_TRADES].code, answers[TICK].state) == ("forbidden", "live")
    started = ask(asker, StartDownload(2, [CODE], "1d"))
    assert isinstance(started, DownloadStarted)
    assert (started.topic, started.code, site.source.downloads) == (None, "forbidden", [])
    roll = ask(asker, Survey(3, "state"))
    assert isinstance(roll, Roll)
    assert "viewer lacks the role" in str(roll.error)


def test_client_gets_no_more_than_the_forwarders_key(site: Site) -> None:
    forwarder = site.forward(site.poor)
    asker = site.asker(forwarder, site.desk_of_poor)
    state = ask(asker, CatchUp(1, [ALL_TRADES], after=0))
    assert isinstance(state, TopicState)
    assert state.code == "forbidden"
    assert "the client key poor lacks the role" in str(state.error)
    assert ask(asker, StartDownload(2, [CODE], "1d")).code == "forbidden"


def test_key_that_is_taken_back_loses_its_connections(site: Site) -> None:
    forwarder = site.forward()
    good, bad = site.subscribe(forwarder, site.desk, TICK), site.subscribe(forwarder, site.lost, TICK)
    asks = site.asker(forwarder, site.lost)
    assert ask(asks, CatchUp(1, [TICK])).state == "live"
    site.reaches(good, bad)
    (site.rack / "clients" / "lost.key").unlink()

    def only_good() -> bool:
        site.publish()
        return bool(good.poll(20)) and not bad.poll(50)

    wait_for(lambda: forwarder.service._relays["market"]._before.messages, "the sockets to be bound anew")
    while bad.poll(0):
        bad.recv_multipart()
    wait_for(only_good, "the good client alone to be served")
    site.reaches(good)
    # The subscriptions of connections that have ended are not counted: the topic is given back.
    good.close(linger=0)
    wait_for(lambda: TICK not in site.source.wanted, "the end of the subscription")


# Questions


def test_clients_are_askers_of_their_own(site: Site) -> None:
    """A survey asks all workers but the one that surveys, by their connections."""
    forwarder = site.forward()
    first, second = (site.asker(forwarder, site.desk) for _ in range(2))
    first.send(encode_ask(Attend(0, "aaaaaaaa")))
    second.send(encode_ask(Attend(0, "bbbbbbbb")))

    def both_attend() -> bool:
        roll = ask(first, Survey(3, "clients"))
        assert isinstance(roll, Roll)
        return roll.asked == ["bbbbbbbb"]

    wait_for(both_attend, "both workers")
    question = reply(second)
    assert isinstance(question, Question)
    second.send(b'{"ask":"finding","id":%d,"worker":"bbbbbbbb","found":[7]}' % question.id)
    found = reply(first)
    assert isinstance(found, Found)
    assert (found.id, found.worker, bytes(found.found)) == (3, "bbbbbbbb", b"[7]")


def test_asker_that_does_not_read_holds_up_its_own_answers_alone(site: Site) -> None:
    forwarder = site.forward()
    passes = forwarder.service._questions["ask"]
    site.reaches(site.subscribe(forwarder, site.desk, TICK))
    site.source.publish(TICK, {CODE: [{"time": 1, "n": 0, "pad": "x" * 60_000}]})
    lazy, good = site.asker(forwarder, site.desk, mark=1), site.asker(forwarder, site.desk)
    count = 0
    while not passes._full:
        count += 1
        lazy.send(encode_ask(CatchUp(count, [TICK])))
        assert ask(good, CatchUp(0, [TICK])).state == "live"
        assert count < 5000
    assert [reply(lazy).id for _ in range(count)] == list(range(1, count + 1))
    assert passes.dropped == 0


def test_question_waits_for_the_feeder_and_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "WAIT_SECONDS", 0.2)
    forwarder = site.forward()
    passes = forwarder.service._questions["ask"]
    asker = site.asker(forwarder, site.desk)
    site.feeder.stop()
    asker.send(encode_ask(CatchUp(1, [TICK])))
    wait_for(lambda: passes.dropped == 1 and not len(passes), "the question to be given up")
    site.start_feeder()

    def answered() -> int:
        asker.send(encode_ask(CatchUp(2, [TICK])))
        return asker.poll(100)

    wait_for(answered, "an answer")
    assert reply(asker).id == 2


def test_connection_of_a_silent_client_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "IDLE_SECONDS", 0.1)
    forwarder = site.forward()
    asker = site.asker(forwarder, site.desk)
    passes = forwarder.service._questions["ask"]
    ask(asker, CatchUp(1, [STATUS_TOPIC]))
    wait_for(lambda: not len(passes), "the end of the connection")
    assert ask(asker, CatchUp(2, [STATUS_TOPIC])).id == 2


def test_client_that_was_silent_longest_gives_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_ASKERS", 2)
    forwarder = site.forward()
    passes = forwarder.service._questions["ask"]
    several = [site.asker(forwarder, site.desk) for _ in range(3)]
    for number in (1, 2):
        for asker in several:
            assert ask(asker, CatchUp(number, [STATUS_TOPIC])).id == number
            assert len(passes) <= 2


def test_key_with_most_clients_gives_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "MOST_ASKERS", 3)
    forwarder = site.forward()
    passes = forwarder.service._questions["ask"]
    silent = site.asker(forwarder, site.viewer)
    assert ask(silent, CatchUp(1, [STATUS_TOPIC])).id == 1
    connection = next(iter(passes._askers.values()))
    for number in range(4):
        assert ask(site.asker(forwarder, site.desk), CatchUp(number, [STATUS_TOPIC])).id == number
    # It was silent longest of all, and is the only one of its key.
    assert connection in passes._askers.values()
    assert len(passes) == 3


# Settings


def test_trade_events_need_keys(site: Site) -> None:
    config = msgspec.structs.replace(site.settings(), curve_dir="")
    with pytest.raises(ConfigError, match="keygen FOLDER --forward"):
        endpoint.forwarded_endpoints(config)
    alone = endpoint.forwarded_endpoints(msgspec.structs.replace(config, forward_trade_addr=""))
    assert set(alone) == {"market", "ask"}


def test_a_socket_of_its_own_for_trade_questions_is_refused(site: Site) -> None:
    with pytest.raises(ConfigError, match="trade_ask_addr"):
        endpoint.forwarded_endpoints(site.settings(trade_ask_addr="tcp://127.0.0.1:1"))


def test_folder_of_a_client_alone_is_refused(site: Site) -> None:
    with pytest.raises(ConfigError, match="cannot read the keys of the forward"):
        endpoint.forwarded_endpoints(site.settings(site.desk))


def test_forwarder_that_is_its_own_feeder_is_refused(site: Site) -> None:
    with pytest.raises(ConfigError, match="forward_ask_addr: is ask_addr"):
        endpoint.forwarded_endpoints(site.settings(forward_ask_addr=site.config.ask_addr))


def test_taken_port_is_named(site: Site) -> None:
    taken = site.forward().service.addresses["ask"]
    with pytest.raises(ConfigError, match=rf"forward_ask_addr: cannot listen on {taken}: Address (already )?in use"):
        Forwarder(site.settings(forward_ask_addr=taken)).open()


# Health


@contextmanager
def answer(port: int, path: str) -> Iterator[tuple[int, str]]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=MS / 1000) as response:
            yield response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        yield exc.code, exc.read().decode()


def test_readiness_follows_the_heartbeats(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qmt_bridge.forward.heartbeat.ABSENT_AFTER", 1.5)
    forwarder = site.forward(forward_health_addr="127.0.0.1:0")
    port = forwarder.service.health_port

    def ready() -> bool:
        with answer(port, "/readyz") as (status, body):
            assert json.loads(body)["ready"] == (status == 200)
            return status == 200

    wait_for(ready, "the heartbeats")
    site.feeder.stop()
    wait_for(lambda: not ready(), "the end of the heartbeats")
    with answer(port, "/healthz") as (status, body):
        assert (status, json.loads(body)) == (200, {"alive": True})
    wait_for(lambda: shown_links(port)["market_addr"] == "feeder_absent", "the trouble of the link")
    site.start_feeder()
    wait_for(ready, "the heartbeats again")


def shown_links(port: int) -> dict[str, str | None]:
    with answer(port, "/readyz") as (_, body):
        links: dict[str, str | None] = json.loads(body)["links"]
        return links


def test_metrics_count_what_is_passed_on(site: Site) -> None:
    forwarder = site.forward(forward_health_addr="127.0.0.1:0")
    site.reaches(site.subscribe(forwarder, site.desk, TICK))
    ask(site.asker(forwarder, site.desk), CatchUp(1, [TICK]))

    def samples() -> dict[str, float]:
        with answer(forwarder.service.health_port, "/metrics") as (_, body):
            lines = [line.rpartition(" ") for line in body.splitlines() if not line.startswith("#")]
            return {name.removeprefix("qmt_bridge_forward_"): float(value) for name, _, value in lines}

    wait_for(lambda: samples()['messages_total{socket="market"}'] >= site.number, "the messages to be counted")
    found = samples()
    assert found['bytes_total{socket="market"}'] > 60 * site.number
    assert found['asked_total{socket="ask"}'] == found['answered_total{socket="ask"}'] == 1
    assert found['askers{socket="ask"}'] == 1
    assert found['link_up{link="trade_addr"}'] == 1
    # The heartbeats, and the topic.
    assert found['demands_total{socket="market"}'] == 2
