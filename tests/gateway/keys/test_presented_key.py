"""Where a handshake may carry a key."""

from __future__ import annotations

import pytest

from gateway.keys.presented_key import presented_key


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
