"""Hostile tokens, claims and sets of keys: a refusal, and no other exception."""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import SCOPES
from qmt_bridge.tokens.claims import TokenKey, rights
from qmt_bridge.tokens.key_set import KeySet, UnknownSigner

PRIVATE = ec.generate_private_key(ec.SECP256R1())
PUBLIC = {**ECAlgorithm.to_jwk(PRIVATE.public_key(), as_dict=True), "kid": "ec"}
KEYS = KeySet(json.dumps({"keys": [PUBLIC]}).encode(), "of the test")
CLAIMS: dict[str, Any] = {"sub": "alice", "iss": "i", "aud": "a", "exp": time.time() + 3600, "scope": "market"}
GOOD = jwt.encode(CLAIMS, PRIVATE, "ES256", headers={"kid": "ec"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
EXAMPLES = settings(max_examples=50)


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def verified(token: str) -> bool:
    try:
        return KEYS.verify(token, "i", "a") is not None
    except UnknownSigner:
        return False


def test_the_token_is_right() -> None:
    assert verified(GOOD)


@EXAMPLES
@given(st.text(), st.text(), st.text())
def test_any_three_texts_are_no_token(head: str, body: str, signature: str) -> None:
    assert not verified(f"{head}.{body}.{signature}")
    assert not verified(f"{GOOD.partition('.')[0]}.{body}.{signature}")


@EXAMPLES
@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_a_token_with_another_character_is_wrong(place: int, character: str) -> None:
    changed = GOOD[:place] + character + GOOD[place + 1 :]
    assert verified(changed) == (changed == GOOD)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(["alg", "kid", "b64", "crit", "typ", "jwk", "x5u"]), JSON | st.just("ES256")))
def test_any_header_without_a_signature_is_refused(header: dict[str, object]) -> None:
    assert not verified(f"{part(header)}.{GOOD.split('.')[1]}.{GOOD.split('.')[2]}")


@EXAMPLES
@given(st.dictionaries(st.sampled_from([*CLAIMS, "nbf", "iat", "jti"]), JSON))
def test_any_signed_claims_are_judged(changes: dict[str, object]) -> None:
    token = jwt.encode(CLAIMS, PRIVATE, "ES256", headers={"kid": "ec"}).split(".")[0]
    body = f"{token}.{part(CLAIMS | changes)}"
    signature = ECAlgorithm(ECAlgorithm.SHA256).sign(body.encode(), PRIVATE)
    verified(f"{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}")


@EXAMPLES
@given(JSON, JSON, JSON)
def test_any_claims_give_known_scopes_or_nothing(subject: object, scopes: object, accounts: object) -> None:
    key = rights({"sub": subject, "exp": 10.5, "scope": scopes, "accounts": accounts}, "scope", "accounts")
    assert (key is None) == (not isinstance(subject, str) or not subject)
    if isinstance(key, TokenKey):
        assert set(key.scopes) <= set(SCOPES)
        assert key.accounts or not key.allows("trade")
        assert key.name.isprintable()


@EXAMPLES
@given(st.lists(st.dictionaries(st.sampled_from([*PUBLIC, "n", "e", "k", "use", "alg"]), JSON), max_size=4))
def test_any_entries_beside_a_key_are_left_out(entries: list[dict[str, object]]) -> None:
    assert len(KeySet(json.dumps({"keys": [*entries, PUBLIC]}).encode(), "x")) >= 1
    with suppress(ConfigError):
        KeySet(json.dumps({"keys": entries}).encode(), "x")
