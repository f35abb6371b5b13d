"""Which claims give scopes and accounts: by name, also within other claims."""

from __future__ import annotations

from typing import Any

import pytest

from qmt_bridge.tokens.claims import rights

CLAIMS: dict[str, Any] = {
    "sub": "alice",
    "exp": 10,
    "realm_access": {"roles": ["qmtb:market", "offline_access"]},
    "resource_access": {"desk.example": {"roles": ["trade", "l2"]}, "plain": {"roles": "formula"}},
    "https://desk.example/rights": ["download"],
    "desk": {"accounts": ["1000000365"]},
}


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("realm_access.roles", {"market"}),
        ("resource_access.desk.example.roles", {"l2", "trade"}),
        ("resource_access.plain.roles", {"formula"}),
        ("https://desk.example/rights", {"download"}),
        ("realm_access", set()),
        ("realm_access.roles.market", set()),
        ("resource_access.other.roles", set()),
        ("sub.roles", set()),
        (".", set()),
    ],
)
def test_scopes_may_be_within_other_claims(name: str, scopes: set[str]) -> None:
    key = rights(CLAIMS, name, "desk.accounts")
    assert key is not None
    assert (set(key.scopes), key.accounts) == (scopes, ("1000000365",))


def test_accounts_may_be_within_other_claims() -> None:
    claims = CLAIMS | {"scope": "trade"}
    for name, accounts, allowed in (("desk.accounts", ("1000000365",), True), ("desk.others", (), False)):
        key = rights(claims, "scope", name)
        assert key is not None
        assert (key.accounts, key.allows("trade")) == (accounts, allowed)


def test_claim_with_the_whole_name_comes_first() -> None:
    key = rights(CLAIMS | {"realm_access.roles": ["admin"]}, "realm_access.roles", "")
    assert key is not None
    assert key.scopes == ("admin",)
