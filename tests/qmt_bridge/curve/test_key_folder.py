"""Files of CURVE keys: what is in them, who may read them, and how a client is added."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import zmq
import zmq.auth

from qmt_bridge.curve.certificate import (
    MOST_BYTES,
    ROLES,
    Certificate,
    checked_name,
    checked_roles,
    read_certificate,
    write_certificate,
)
from qmt_bridge.curve.key_folder import (
    add_client,
    add_forwarder,
    client_certificates,
    load_curve,
    make_keys,
    own_keys,
)
from qmt_bridge.errors import ConfigError

POSIX = pytest.mark.skipif(os.name != "posix", reason="Windows has access lists, which the folder gives")


def test_a_file_is_read_as_it_was_written_also_by_pyzmq(tmp_path: Path) -> None:
    public, secret = zmq.curve_keypair()
    made = Certificate("desk", public, secret, frozenset(("trade", "ask")))
    write_certificate(tmp_path / "desk.key_secret", made)
    assert read_certificate(tmp_path / "desk.key_secret") == made
    assert zmq.auth.load_certificate(tmp_path / "desk.key_secret") == (public, secret)


def test_a_file_of_an_earlier_version_has_all_roles(tmp_path: Path) -> None:
    public, _ = zmq.auth.create_certificates(tmp_path, "gateway")
    found = read_certificate(Path(public))
    assert (found.name, found.roles) == ("gateway", frozenset(ROLES))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        pytest.param(b"", "is no file of a CURVE key", id="empty"),
        pytest.param(b'curve\n    public-key = "short"\n', "is no file of a CURVE key", id="short"),
        pytest.param(b"\xff" * 100, "is no file of a CURVE key", id="bytes"),
        pytest.param(b"x" * (MOST_BYTES + 1), "more than", id="long"),
        pytest.param(b'    roles = "trade"\n    roles = "ask"\n', "two values of roles", id="twice"),
    ],
)
def test_what_is_no_certificate_is_refused_by_name(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "odd.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"odd\.key: .*{said}"):
        read_certificate(path)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", "C:evil", "a\n", "x" * 65, "dot."])
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        checked_name(name)


@pytest.mark.parametrize("text", ["", "trade,root", " , "])
def test_unknown_roles_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected some of market,trade,ask,download,admin"):
        checked_roles(text)


@POSIX
def test_keys_are_never_readable_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = set()
    fsync = os.fsync

    def look(file: int) -> None:
        modes.add(os.fstat(file).st_mode & 0o777)
        fsync(file)

    monkeypatch.setattr(os, "fsync", look)
    before = os.umask(0)
    try:
        make_keys(tmp_path / "keys")
        add_client(tmp_path / "keys", "desk", frozenset(("trade",)))
    finally:
        os.umask(before)
    assert modes == {0o600}
    found = [path for path in (tmp_path / "keys").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}
    assert (tmp_path / "keys" / "clients").stat().st_mode & 0o777 == 0o700


def test_two_processes_make_the_same_keys(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "curve"
    makers = [threading.Thread(target=own_keys, args=(folder,)) for _ in range(8)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    feeder, gateway = load_curve(str(folder), "feeder"), load_curve(str(folder), "gateway")
    assert feeder is not None
    assert gateway is not None
    assert gateway.server == feeder.public
    # Nothing is left beside it.
    assert [path.name for path in folder.parent.iterdir()] == ["curve"]


def test_an_added_client_has_a_folder_of_its_own(tmp_path: Path) -> None:
    make_keys(tmp_path)
    own = add_client(tmp_path, "desk", frozenset(("trade", "ask")))
    assert {path.name for path in own.iterdir()} == {"feeder.key", "gateway.key", "gateway.key_secret"}
    curve = load_curve(str(own), "gateway")
    assert curve is not None
    clients = {each.name: each for each in client_certificates(tmp_path) if isinstance(each, Certificate)}
    assert clients["desk"].public == curve.public
    assert clients["desk"].roles == {"trade", "ask"}
    assert clients["desk"].secret is None
    with pytest.raises(ConfigError, match="desk is taken"):
        add_client(tmp_path, "desk", frozenset(("trade",)))


def test_a_damaged_file_hides_no_other_client(tmp_path: Path) -> None:
    make_keys(tmp_path)
    (tmp_path / "clients" / "broken.key").write_text("?", encoding="utf-8")
    found = list(client_certificates(tmp_path))
    assert [type(each) for each in found] == [ConfigError, Certificate]


def test_a_forwarder_listens_with_a_pair_of_its_own(tmp_path: Path) -> None:
    make_keys(tmp_path)
    rack = add_client(tmp_path, "rack", frozenset(ROLES))
    add_forwarder(rack)
    desk = add_client(rack, "desk", frozenset(("market",)))
    feeder, forward = (load_curve(str(folder), end) for folder, end in ((tmp_path, "feeder"), (rack, "forward")))
    up, down = (load_curve(str(folder), "gateway") for folder in (rack, desk))
    assert feeder is not None
    assert forward is not None
    assert up is not None
    assert down is not None
    assert (up.server, down.server) == (feeder.public, forward.public)
    assert forward.secret not in (feeder.secret, up.secret)
    assert [each.name for each in client_certificates(rack) if isinstance(each, Certificate)] == ["desk"]


def test_a_forwarder_needs_the_folder_of_a_client(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="has the keys of a feeder"):
        add_forwarder(tmp_path / "keys")
    with pytest.raises(ConfigError, match="has no keys of a client"):
        add_forwarder(tmp_path)
    rack = add_client(tmp_path / "keys", "rack", frozenset(ROLES))
    add_forwarder(rack)
    with pytest.raises(ConfigError, match="exists already"):
        add_forwarder(rack)
