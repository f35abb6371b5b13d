"""Keys: where a handshake may carry one, and which key is accepted."""

from __future__ import annotations

import pytest

from gateway.auth import Keys, presented_key


@pytest.mark.parametrize(
    ("headers", "subprotocols", "query", "expected"),
    [
        pytest.param({"authorization": "Bearer k1"}, [], b"", "k1", id="bearer"),
        pytest.param({"authorization": "bearer  k1 "}, [], b"", "k1", id="bearer-loose"),
        pytest.param({"authorization": "Basic k1"}, [], b"", None, id="not-bearer"),
        pytest.param({"x-api-key": "k2"}, [], b"", "k2", id="header"),
        pytest.param({}, ["qmt.v1.json", "key.k3"], b"", "k3", id="subprotocol"),
        pytest.param({}, [], b"api_key=a%2Bb%26c%23", "a+b&c#", id="query-encoded"),
        pytest.param({}, [], b"after=3&api_key=k4", "k4", id="query-second"),
        pytest.param({}, ["key."], b"api_key=", None, id="empty"),
        pytest.param({"authorization": "Bearer k1", "x-api-key": "k2"}, ["key.k3"], b"api_key=k4", "k1", id="order"),
    ],
)
def test_key_is_read_from_the_handshake(
    headers: dict[str, str], subprotocols: list[str], query: bytes, expected: str | None
) -> None:
    assert presented_key(headers, subprotocols, query) == expected


def test_only_the_configured_key_is_accepted() -> None:
    keys = Keys("密钥-1")
    assert keys.accepts("密钥-1")
    assert not keys.accepts("密钥-2")
    assert not keys.accepts("")


UTF8 = [(key, "utf-8") for key in ("密钥-1", "ключ", "é", "plain", "à", "慠")]


@pytest.mark.parametrize(("key", "encoding"), [*UTF8, ("é", "latin-1"), ("plain", "latin-1"), ("à", "latin-1")])
@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_key_in_a_header_may_be_utf8_or_latin1(key: str, encoding: str, name: str) -> None:
    header = key.encode(encoding).decode("latin-1")
    given = presented_key({name: f"Bearer {header}" if name == "authorization" else header}, [], b"")
    assert given is not None
    assert Keys(key).accepts(given)
    assert not Keys(key + "x").accepts(given)


def test_no_key_is_accepted_without_a_configured_one() -> None:
    assert not Keys("").accepts("")
    assert not Keys("").configured
