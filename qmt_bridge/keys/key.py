"""API keys: their form, their rights and their hashes. Pure; time is an argument (docs/websocket.md, "Keys").

A key is 256 bits from the system's random source, and only its SHA-256 is kept. A slow hash (scrypt, argon2) protects
passwords, because these are few enough to be tried one after the other. 2^256 keys are not, however fast a trial is,
and a slow hash would cost a gateway some 50 ms for each handshake with a wrong key, which anybody can send.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from qmt_bridge.errors import ConfigError

Scope = Literal["market", "l2", "formula", "download", "trade", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# Scanners for secrets find a key in a file by its beginning.
PREFIX = "qmtb_"
# Of the setting `api_key`, which a person may have chosen.
SHORTEST = 16
# The key in the guide of the original programs. It is too short and everybody knows it, so only invented data is
# served for it.
EXAMPLE_KEY = "your-secret-key"
# The name of the key that is in the setting `api_key`.
SIMPLE_NAME = "api_key"
# Keys in one file.
MOST_KEYS = 1000

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_LONGEST = 100 * 366 * 86400

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Count = Annotated[int, Meta(ge=0)]


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key: its hash and its rights. Times are seconds since 1970; a limit of 0 is that of the settings."""

    name: Name
    sha256: Hash
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1)]
    # The accounts whose trade events it may see; empty is every account.
    accounts: tuple[str, ...] = ()
    # Sockets of one worker.
    connections: Count = 0
    # Subscriptions, and requests a second, of one socket.
    codes: Count = 0
    rate: Count = 0
    made: Count = 0
    # 0 is never.
    expires: Count = 0

    def allows(self, scope: Scope) -> bool:
        """Return whether the key has the scope."""
        return scope in self.scopes

    def expired(self, now: float) -> bool:
        """Return whether the key is no longer valid at `now`."""
        return bool(self.expires) and now >= self.expires


def make_key() -> str:
    """Return a new key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def sha256(key: str) -> str:
    """Return the hash that is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def simple_key(api_key: str) -> Key:
    """Return the key of the setting `api_key`: every scope, every account, no expiry."""
    return Key(name=SIMPLE_NAME, sha256=sha256(api_key), scopes=SCOPES)


def check_length(api_key: str, *, simulated: bool) -> None:
    """Raise `ConfigError` if the setting `api_key` is so short that it can be guessed."""
    if not api_key or len(api_key) >= SHORTEST or (simulated and api_key == EXAMPLE_KEY):
        return
    raise ConfigError(
        "api_key",
        f"has {len(api_key)} characters, which can be guessed; a key has at least {SHORTEST}: "
        "`qmt-bridge key add NAME --scopes market,trade` makes one",
    )


def seconds_of(duration: str) -> int:
    """Return the seconds of a duration such as ``30d`` or ``12h``; raise `ConfigError`."""
    found = re.fullmatch(r"(\d{1,10})([smhdw])", duration, re.ASCII)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if not 0 < seconds <= _LONGEST:
        raise ConfigError("--expires", f"expected a duration such as 30d, 12h or 45m, got {duration[:40]!r}")
    return seconds


def listed(text: str) -> tuple[str, ...]:
    """Return the items of a list with commas, each once."""
    return tuple(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def checked_scopes(text: str) -> tuple[Scope, ...]:
    """Return the scopes in a list with commas; raise `ConfigError` for an unknown one or none."""
    given = listed(text)
    unknown = [item for item in given if item not in SCOPES]
    if unknown or not given:
        got = repr(unknown[0][:40]) if unknown else "none"
        raise ConfigError("--scopes", f"expected some of {','.join(SCOPES)}, got {got}")
    return tuple(scope for scope in SCOPES if scope in given)


def checked_accounts(text: str) -> tuple[str, ...]:
    """Return the account numbers in a list with commas; raise `ConfigError` for one with a type."""
    given = listed(text)
    for account in given:
        if ":" in account or not account.isprintable():
            raise ConfigError("--accounts", "expected account numbers without a type, such as STOCK")
    return given
