"""Who may use which socket of the feeder: open questions, roles of CURVE keys, and keys that are taken back."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from feeder.app import Feeder
from qmt_bridge import sockets
from qmt_bridge.addresses import endpoint
from qmt_bridge.config import Config
from qmt_bridge.curve.certificate import ROLES
from qmt_bridge.curve.key_folder import add_client, load_curve, make_keys
from qmt_bridge.errors import ConfigError, Refused
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import (
    Ask,
    CatchUp,
    DownloadStarted,
    Reply,
    StartDownload,
    TopicState,
    decode_reply,
    encode_ask,
)
from qmt_bridge.wire.survey import Attend, Roll, Survey
from qmt_bridge.wire.topics import ALL_TRADES, STATUS_TOPIC
from tests.support.greeter import Greeter, addresses, take_until_live, trade_once, trading
from tests.support.ports import ANY_ADDRESSES, ANY_PORT
from tests.support.waiting import SLOWNESS, wait_for

SECONDS = 30.0 * SLOWNESS
Socket = zmq.Socket[bytes]
JOURNAL = CatchUp(1, [ALL_TRADES], after=0)
DOWNLOAD = StartDownload(2, ["000001.SZ"], "1d", "", "")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(**ANY_ADDRESSES, data_dir=str(tmp_path / "data"), grace=0.1)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """Return a folder of keys with a client for each role, and one with all of them."""
    folder = tmp_path / "keys"
    make_keys(folder)
    for role in ROLES:
        add_client(folder, f"of-{role}", frozenset((role,)))
    add_client(folder, "lost", frozenset(ROLES))
    return folder


@pytest.fixture
def feeder(config: Config, request: pytest.FixtureRequest) -> Iterator[Feeder]:
    """Return a feeder; with the fixture `keys`, one with those keys."""
    if "keys" in request.fixturenames:
        folder = request.getfixturevalue("keys")
        config = msgspec.structs.replace(config, trade_addr=ANY_PORT, trade_ask_addr="", curve_dir=str(folder))
    feeder = Feeder(config, Greeter())
    feeder.start()
    yield feeder
    feeder.stop()


@pytest.fixture
def context() -> Iterator[zmq.Context[Socket]]:
    made: list[Socket] = []

    class Keeping(zmq.Context[Socket]):
        # A socket that is forgotten before it is closed is a ResourceWarning.
        def socket(self, *args: Any, **options: Any) -> Socket:
            made.append(super().socket(*args, **options))
            return made[-1]

    context = Keeping()
    yield context
    context.destroy(linger=0)


def ask(context: zmq.Context[Socket], address: str, question: Ask, curve_dir: str = "") -> Reply:
    """Return the first answer to a question."""
    with sockets.connect_dealer(context, address, load_curve(curve_dir, "gateway")) as dealer:
        assert dealer.poll(int(SECONDS * 1000), zmq.POLLOUT), "no connection"
        dealer.send(encode_ask(question))
        assert dealer.poll(int(SECONDS * 1000)), "no answer"
        return decode_reply(dealer.recv())


def received(subscriber: Socket) -> Iterator[Frame]:
    """Yield what has reached a subscriber."""
    while subscriber.poll(0):
        yield Frame.from_parts(subscriber.recv_multipart())


def code(reply: Reply) -> str | None:
    return reply.code


def test_open_questions_are_about_market_data_alone(feeder: Feeder, context: zmq.Context[Socket]) -> None:
    publisher = feeder.publisher
    trade_once(feeder.source, 3)  # type: ignore[arg-type]  # it is the Greeter
    refused = ask(context, publisher.ask_addr, JOURNAL)
    assert isinstance(refused, TopicState)
    assert (refused.state, refused.code, refused.body, refused.seq) == ("refused", "forbidden", None, 0)
    # The address is that of the settings, which on Windows leave the port to the system here.
    assert re.search(r"; ask at \S+ \(trade_ask_addr\)$", str(refused.error))
    started = ask(context, publisher.ask_addr, DOWNLOAD)
    assert isinstance(started, DownloadStarted)
    assert (started.topic, started.code) == (None, "forbidden")
    status = ask(context, publisher.ask_addr, CatchUp(3, [STATUS_TOPIC]))
    assert isinstance(status, TopicState)
    assert status.state == "live"


def test_the_own_socket_answers_about_trade_events(feeder: Feeder, context: zmq.Context[Socket]) -> None:
    trade_once(feeder.source, 3)  # type: ignore[arg-type]
    wait_for(lambda: feeder.publisher._sent.newest == 3)
    # On Windows that socket has keys, which the feeder has made.
    own = str(endpoint.key_folder(feeder.publisher._config) or "")
    found = ask(context, feeder.publisher.trade_ask_addr, JOURNAL, own)
    assert isinstance(found, TopicState)
    assert (found.state, found.seq) == ("live", 3)
    # The source has no downloads; that is another refusal.
    assert code(ask(context, feeder.publisher.trade_ask_addr, DOWNLOAD, own)) == "upstream_refused"


def test_trade_events_are_open_only_by_a_setting(config: Config, context: zmq.Context[Socket]) -> None:
    open_config = msgspec.structs.replace(config, open_trade_addr=True, trade_addr=ANY_PORT, trade_ask_addr="")
    feeder = Feeder(open_config, Greeter())
    feeder.start()
    try:
        assert feeder.publisher.trade_addr.startswith("tcp://127.0.0.1:")
        assert code(ask(context, feeder.publisher.ask_addr, JOURNAL)) is None
    finally:
        feeder.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")
def test_another_user_cannot_connect_to_the_own_sockets() -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None or os.getuid() != 0:
        pytest.skip("only root can run a program as another user, by setpriv")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        feeder = Feeder(Config(**ANY_ADDRESSES, data_dir=str(data)), Greeter())
        feeder.start()
        # What is above may be entered by everybody: the folder of the sockets itself keeps the others out.
        for above in (Path(folder), data):
            above.chmod(0o755)
        try:
            for address in (feeder.publisher.trade_addr, feeder.publisher.trade_ask_addr):
                program = f"import socket; socket.socket(socket.AF_UNIX).connect({address.removeprefix('ipc://')!r})"
                as_other = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/env", "python3"]
                done = subprocess.run([*as_other, "-c", program], capture_output=True, text=True, check=False)
                assert "PermissionError" in done.stderr
                assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
        finally:
            feeder.stop()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such sockets")
def test_an_address_in_a_shared_folder_is_refused(config: Config, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    open_config = msgspec.structs.replace(config, trade_addr=f"ipc://{shared}/trade.sock")
    feeder = Feeder(open_config, Greeter())
    with pytest.raises(ConfigError, match=rf"trade_addr: another user could listen .*{shared} \(mode 1777\)"):
        feeder.start()
    with pytest.raises(ConfigError, match="every user may write"):
        endpoint.trade_endpoints(open_config, "gateway", makes=False)


def test_the_feeder_makes_keys_where_there_is_no_folder(config: Config, context: zmq.Context[Socket]) -> None:
    windows = msgspec.structs.replace(config, trade_addr=ANY_PORT, trade_ask_addr="tcp://127.0.0.1:*")
    feeder = Feeder(windows, Greeter())
    feeder.start()
    try:
        folder = endpoint.own_key_folder(windows)
        if sys.platform != "win32":
            assert folder.stat().st_mode & 0o777 == 0o700
            files = [path for path in folder.rglob("*") if path.is_file()]
            assert len(files) == 5
            assert all(path.stat().st_mode & 0o777 == 0o600 for path in files)
        # Found by our own programs without a setting.
        where = addresses(feeder)
        with trading(feeder.source, "1"):  # type: ignore[arg-type]
            found = take_until_live(where.subscribe(ALL_TRADES, data_dir=config.data_dir, after=0), 2)
        assert [frame.data["seq"] for frame in found] == list(range(1, len(found) + 1))
        # Without the key there is no connection; quotes need none.
        plain = sockets.connect_subscriber(context, feeder.publisher.trade_addr, None)
        plain.subscribe(b"")
        trade_once(feeder.source, 1)  # type: ignore[arg-type]
        assert next(where.subscribe("quote/600519.SH/tick/")).topic == "quote/600519.SH/tick/"
        assert not plain.poll(0)
    finally:
        feeder.stop()


def test_the_feeders_own_key_opens_no_trade_events(
    feeder: Feeder, keys: Path, config: Config, context: zmq.Context[Socket]
) -> None:
    """The process that has started the feeder asks with it whether the feeder answers."""
    own = endpoint.supervised_endpoint(msgspec.structs.replace(config, curve_dir=str(keys))).curve
    with sockets.connect_dealer(context, feeder.publisher.ask_addr, own) as dealer:
        codes = []
        for question in (CatchUp(3, [STATUS_TOPIC]), JOURNAL, DOWNLOAD):
            assert dealer.poll(int(SECONDS * 1000), zmq.POLLOUT), "no connection"
            dealer.send(encode_ask(question))
            assert dealer.poll(int(SECONDS * 1000)), "no answer"
            codes.append(decode_reply(dealer.recv()).code)
    assert codes == [None, "forbidden", "forbidden"]


@pytest.mark.parametrize(
    ("role", "market", "trade", "journal", "download"),
    [
        pytest.param("market", True, False, "forbidden", "forbidden", id="market"),
        pytest.param("trade", False, True, "forbidden", "forbidden", id="trade"),
        pytest.param("ask", False, False, None, "forbidden", id="ask"),
        pytest.param("download", False, False, "forbidden", "upstream_refused", id="download"),
    ],
)
def test_a_key_opens_what_its_roles_say(
    feeder: Feeder,
    keys: Path,
    context: zmq.Context[Socket],
    role: str,
    market: bool,
    trade: bool,
    journal: str | None,
    download: str,
) -> None:
    folder = str(keys / f"of-{role}")
    publisher, curve = feeder.publisher, load_curve(folder, "gateway")
    for address, may in ((publisher.market_addr, market), (publisher.trade_addr, trade)):
        subscriber = sockets.connect_subscriber(context, address, curve)
        monitor = subscriber.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        assert monitor.poll(int(SECONDS * 1000))
        event = int.from_bytes(monitor.recv_multipart()[0][:2], sys.byteorder)
        assert event == (zmq.EVENT_HANDSHAKE_SUCCEEDED if may else zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        subscriber.disable_monitor()
        monitor.close(linger=0)
    # A question about market data needs no role.
    assert code(ask(context, publisher.ask_addr, CatchUp(3, [STATUS_TOPIC]), folder)) is None
    assert code(ask(context, publisher.ask_addr, JOURNAL, folder)) == journal
    assert code(ask(context, publisher.ask_addr, DOWNLOAD, folder)) == download


def test_a_removed_key_is_cut_off_and_others_lose_nothing(
    feeder: Feeder, keys: Path, context: zmq.Context[Socket], caplog: pytest.LogCaptureFixture
) -> None:
    where = addresses(feeder)
    good = where.subscribe(ALL_TRADES, "quote/600519.SH/tick/", curve_dir=str(keys), after=0)
    revoked = sockets.connect_subscriber(
        context, feeder.publisher.trade_addr, load_curve(str(keys / "lost"), "gateway")
    )
    revoked.subscribe(b"")
    seen = []
    with trading(feeder.source, "1"):  # type: ignore[arg-type]
        assert revoked.poll(int(SECONDS * 1000))
        (keys / "clients" / "lost.key").unlink()
        wait_for(lambda: "the connections of trade_addr end" in caplog.text, "the end of the connection")
        # What was sent before the key was taken back may still be on its way.
        cut = feeder.publisher._sent.newest
        while not seen or seen[-1] < cut + 2000:
            frame = next(good)
            if frame.topic != "quote/600519.SH/tick/":
                seen.append(frame.data["seq"])
        got = list(received(revoked))
        assert got
        assert max(frame.data["seq"] for frame in got) <= cut
    good.close()  # type: ignore[attr-defined]  # a generator
    assert seen == list(range(1, len(seen) + 1))
    # Nobody has used the other sockets by that key.
    assert "the connections of market_addr end" not in caplog.text


def test_market_data_comes_again_after_a_removed_key(
    feeder: Feeder, keys: Path, context: zmq.Context[Socket], caplog: pytest.LogCaptureFixture
) -> None:
    where, topic = addresses(feeder), "quote/600519.SH/tick/"
    good = where.subscribe(topic, curve_dir=str(keys))
    assert next(good).topic == topic
    curve = load_curve(str(keys / "lost"), "gateway")
    revoked = sockets.connect_subscriber(context, feeder.publisher.market_addr, curve)
    revoked.subscribe(b"quote/")
    only = "quote/000001.SZ/tick/"
    revoked.subscribe(only.encode())
    number = 3
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            feeder.source.publish(topic, "600519.SH", number)  # type: ignore[attr-defined]  # it is the Greeter

    ticking = threading.Thread(target=tick)
    ticking.start()
    try:
        assert revoked.poll(int(SECONDS * 1000))
        wait_for(lambda: feeder.publisher._registry.find(only) is not None, "its topic")  # type: ignore[arg-type]
        (keys / "clients" / "lost.key").unlink()
        wait_for(lambda: "the connections of market_addr end" in caplog.text, "the end of the connection")
        # What only that client wanted is given back.
        wait_for(lambda: feeder.publisher._registry.find(only) is None, "the end of its topic")  # type: ignore[arg-type]
        number = 4
        while next(good).data["600519.SH"]["number"] != 4:
            pass
        # What was sent before the key was taken back may have been on its way.
        assert max(frame.data["600519.SH"]["number"] for frame in received(revoked) if frame.topic == topic) == 3
    finally:
        stop.set()
        ticking.join()
        good.close()  # type: ignore[attr-defined]  # a generator


def test_a_refused_role_is_told_on_both_sides(feeder: Feeder, keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = []
    where = addresses(feeder)

    def is_told() -> bool:
        # A machine that stands still may take all of the time of one iteration.
        frames = where.subscribe(ALL_TRADES, curve_dir=str(keys / "of-ask"), timeout=2.0, on_notice=told.append)
        assert list(frames) == []
        return any(notice.reason == "key_refused" and "trade_addr" in notice.text for notice in told)

    wait_for(is_told, "the notice")
    assert "(of-ask)" in caplog.text
    assert "is not allowed at trade_addr: to let it in, add the role trade" in caplog.text
    with pytest.raises(Refused, match="the client key of-trade lacks the role"):
        list(where.subscribe(ALL_TRADES, curve_dir=str(keys / "of-trade"), timeout=SECONDS))


SURVEY = Survey(5, "state")


def test_surveys_are_for_administrators_alone(feeder: Feeder, config: Config, context: zmq.Context[Socket]) -> None:
    publisher = feeder.publisher
    refused = ask(context, publisher.ask_addr, SURVEY)
    assert isinstance(refused, Roll)
    assert (refused.asked, str(refused.error)[:31]) == ([], "surveys are not for this asker:")
    own = str(endpoint.key_folder(publisher._config) or "")
    roll = ask(context, publisher.trade_ask_addr, SURVEY, own)
    assert roll == Roll(5, ["feeder"])


def test_everybody_who_may_ask_is_no_administrator(config: Config, context: zmq.Context[Socket]) -> None:
    open_config = msgspec.structs.replace(config, open_trade_addr=True, trade_addr=ANY_PORT, trade_ask_addr="")
    feeder = Feeder(open_config, Greeter())
    feeder.start()
    try:
        for question in (SURVEY, Attend(5, "a3f09c1d")):
            refused = ask(context, feeder.publisher.ask_addr, question)
            assert isinstance(refused, Roll)
            assert "open_trade_addr lets every user" in str(refused.error)
        assert len(feeder.publisher._answers.roll) == 0
    finally:
        feeder.stop()


def test_a_key_needs_the_role_for_surveys(feeder: Feeder, keys: Path, context: zmq.Context[Socket]) -> None:
    for role in ROLES:
        roll = ask(context, feeder.publisher.ask_addr, SURVEY, str(keys / f"of-{role}"))
        assert isinstance(roll, Roll)
        if role == "admin":
            assert roll == Roll(5, ["feeder"])
        else:
            assert f"the client key of-{role} lacks the role" in str(roll.error)
