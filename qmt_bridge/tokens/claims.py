"""The rights that the claims of a verified token give. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from qmt_bridge.keys.key import SCOPES, Key, sha256

# Seconds by which the clocks of the issuer and of this machine may differ.
LEEWAY = 10
# A scope may have this before it, where several programs share the scopes of one issuer.
SCOPE_PREFIX = "qmtb:"
# Of the claim `sub`, which is shown in close reasons and in the log.
_MOST_SHOWN = 48


class TokenKey(Key, frozen=True, kw_only=True):
    """The rights of a token; `signed_by` is the hash of the public key that has verified it."""

    signed_by: str


def rights(claims: Mapping[str, Any], scope_claim: str, accounts_claim: str, signed_by: str = "") -> TokenKey | None:
    """Return the rights of a token whose signature, issuer, audience and times are right; None without a `sub`.

    Without `accounts_claim` a token opens every account. With it, one without accounts has no scope ``trade``.
    """
    subject, expires = claims.get("sub"), claims.get("exp")
    if not isinstance(subject, str) or not subject or isinstance(expires, bool) or not isinstance(expires, int | float):
        return None
    named = {name.removeprefix(SCOPE_PREFIX) for name in _texts(_claim(claims, scope_claim))}
    accounts = tuple(dict.fromkeys(_accounts(_claim(claims, accounts_claim)))) if accounts_claim else ()
    if accounts_claim and not accounts:
        # A key without accounts sees every account.
        named.discard("trade")
    return TokenKey(
        # No key of the file has a colon in its name, so a subject cannot take the name of a key.
        name=f"jwt:{_shown(subject)}",
        sha256=sha256(f"jwt:{claims.get('iss')}\n{subject}"),
        scopes=tuple(scope for scope in SCOPES if scope in named),
        accounts=accounts,
        expires=math.ceil(expires) + LEEWAY,
        signed_by=signed_by,
    )


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim, which may be within others: ``realm_access.roles``. None if there is none.

    A name with dots that a claim has as it stands comes first: such names may be URLs, and a client's may have dots.
    """
    if name in claims:
        return claims[name]
    for at in range(len(name) - 1, 0, -1):
        inner = claims.get(name[:at]) if name[at] == "." else None
        if isinstance(inner, dict) and (found := _claim(inner, name[at + 1 :])) is not None:
            return found
    return None


def _texts(claim: object) -> Iterator[str]:
    """Yield the items of a claim: a list of texts or numbers, or a text with blanks between them."""
    items = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else ()
    for item in items:
        if isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)):
            yield str(item)


def _accounts(claim: object) -> Iterator[str]:
    return (account for account in _texts(claim) if account and account.isprintable() and ":" not in account)


def _shown(subject: str) -> str:
    """Return a subject as it may be shown: cut, and what is not printable escaped."""
    cut = subject[:_MOST_SHOWN]
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in cut)
