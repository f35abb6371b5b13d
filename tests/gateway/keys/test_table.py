"""The keys in force: which one a client has shown, and whether it still holds."""

from __future__ import annotations

import pytest

from gateway.keys.presented_key import presented_key
from gateway.keys.table import Table, missing_scope
from qmt_bridge.keys.key import SCOPES, Key, sha256

NOW = 1_800_000_000.0


def made(name: str, secret: str, **fields: object) -> Key:
    return Key(name=name, sha256=sha256(secret), **{"scopes": ("market",), **fields})  # type: ignore[arg-type]


def test_only_the_configured_key_is_accepted() -> None:
    keys = Table((), "密钥-1")
    assert keys.find("密钥-1") is not None
    assert keys.find("密钥-2") is None
    assert keys.find("") is None


UTF8 = [(key, "utf-8") for key in ("密钥-1", "ключ", "é", "plain", "à", "慠")]


@pytest.mark.parametrize(("key", "encoding"), [*UTF8, ("é", "latin-1"), ("plain", "latin-1"), ("à", "latin-1")])
@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_key_in_a_header_may_be_utf8_or_latin1(key: str, encoding: str, name: str) -> None:
    header = key.encode(encoding).decode("latin-1")
    given = presented_key({name: f"Bearer {header}" if name == "authorization" else header}, [], b"")
    assert given is not None
    assert Table((), key).find(given)
    assert not Table((), key + "x").find(given)


def test_no_key_is_accepted_without_a_configured_one() -> None:
    assert Table().find("") is None
    assert not Table().configured


def test_each_key_of_the_file_is_found_with_its_rights() -> None:
    first, second = made("a", "s1"), made("b", "s2", scopes=("trade",))
    table = Table((first, second), "the-setting")
    assert (table.find("s1"), table.find("s2"), table.find("s3")) == (first, second, None)
    simple = table.find("the-setting")
    assert simple is not None
    assert simple.scopes == SCOPES


@pytest.mark.parametrize("scope", SCOPES)
def test_a_missing_scope_is_named(scope: str) -> None:
    key = made("a", "s1", scopes=tuple(other for other in SCOPES if other != scope))
    assert missing_scope(key, scope) == f"the key a has no scope {scope}"  # type: ignore[arg-type]
    assert missing_scope(made("a", "s1", scopes=(scope,)), scope) == ""  # type: ignore[arg-type]


def test_key_lapses_by_expiry_revocation_and_change() -> None:
    key = made("a", "s1", expires=int(NOW))
    assert Table((key,)).lapsed(key, NOW - 0.1) == ""
    assert Table((key,)).lapsed(key, NOW) == "the key a has expired"
    assert Table().lapsed(key, 0.0) == "the key a was revoked"
    other = made("a", "s1", expires=int(NOW), accounts=("1",))
    assert Table((other,)).lapsed(key, 0.0) == "the rights of the key a have changed"


def test_only_a_key_for_trade_events_makes_the_worker_follow_them() -> None:
    assert not Table((made("a", "s1"),)).sees_trades
    assert Table((made("a", "s1", scopes=("trade",)),)).sees_trades
    assert Table((), "the-setting").sees_trades
