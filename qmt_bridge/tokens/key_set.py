"""The public keys of an issuer (JWKS, RFC 7517), and the check of a token with them. Pure but for the clock.

PyJWT checks signatures and times; it is an optional dependency. What the header of a token says of keys (`jku`, `x5u`,
`jwk`, `x5c`) is not read: a key is one of this set, and the key says which algorithms are right for it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from qmt_bridge.errors import ConfigError
from qmt_bridge.tokens.claims import LEEWAY

if TYPE_CHECKING:
    from jwt import PyJWK

# Characters of a token.
MOST_CHARACTERS = 8192
MOST_KEYS = 100
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# By the key's type and curve. There is no "oct": a secret that both sides know would let each reader of it sign.
_ALGORITHMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
_OPTIONS: Any = {"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True}


class UnknownSigner(Exception):
    """No key of the set has the key id that a token names."""


class Signer:
    """One public key: its hash, and the algorithms that it may be used with."""

    def __init__(self, digest: str, algorithms: tuple[str, ...], key: PyJWK) -> None:
        self.digest = digest
        self.algorithms = algorithms
        self.key: Any = key.key


class KeySet:
    """The keys of an issuer that can verify tokens."""

    def __init__(self, content: bytes, shown: str) -> None:
        """Read a JWKS; raise `ConfigError` for `shown` if it has no usable key, or without PyJWT."""
        require_library()
        try:
            keys = json.loads(content)["keys"]
            signers = [found for key in keys[:MOST_KEYS] if (found := _signer(key)) is not None]
        except (ValueError, LookupError, TypeError, RecursionError) as exc:
            raise ConfigError("jwt_jwks", f"{shown} is no JWKS ({type(exc).__name__})") from None
        if not signers:
            raise ConfigError("jwt_jwks", f"{shown} has no public key of RSA, EC or Ed25519 for signatures")
        self._signers: dict[str | None, list[Signer]] = {}
        for kid, signer in signers:
            self._signers.setdefault(kid, []).append(signer)
        # A token without a key id fits only where there is no choice.
        self._only = [signers[0][1]] if len(signers) == 1 else []
        self.digests = frozenset(signer.digest for _, signer in signers)

    def __len__(self) -> int:
        return len(self.digests)

    def verify(self, token: str, issuer: str, audience: str) -> tuple[dict[str, Any], str] | None:
        """Return the claims of a token and the hash of its key, None for a wrong one; raise `UnknownSigner`."""
        import jwt

        try:
            # The header alone: the other parts are read once, by `decode`.
            header = jwt.get_unverified_header(token.partition(".")[0] + "..")
            kid, algorithm = header.get("kid"), header.get("alg")
            signers = self._only if kid is None else self._signers.get(kid, [])
            if kid is not None and not signers:
                raise UnknownSigner
            for signer in signers:
                if algorithm in signer.algorithms:
                    claims = jwt.decode(
                        token,
                        signer.key,
                        algorithms=signer.algorithms,
                        options=_OPTIONS,
                        issuer=issuer,
                        audience=audience,
                        leeway=LEEWAY,
                    )
                    return claims, signer.digest
        except (jwt.PyJWTError, ValueError, TypeError):
            # What a hostile token may raise in the libraries below.
            return None
        return None


def has_form(given: str) -> bool:
    """Return whether a text has the form of a token, so that it is worth a look."""
    return len(given) <= MOST_CHARACTERS and given.count(".") == 2


def require_library() -> None:
    """Raise `ConfigError` if PyJWT with its cryptography is not installed."""
    try:
        from jwt.algorithms import has_crypto
    except ImportError:
        has_crypto = False
    if not has_crypto:
        raise ConfigError("jwt_jwks", "needs PyJWT: pip install 'qmt-bridge-gateway[jwt]'")


def _signer(key: Any) -> tuple[str | None, Signer] | None:
    """Return the key id and the key of one entry; None for one that cannot verify tokens."""
    import jwt

    if not isinstance(key, dict) or key.get("use", "sig") != "sig":
        return None
    kid, curve = key.get("kid"), key.get("crv", "")
    allowed = _ALGORITHMS.get((str(key.get("kty")), str(curve)), ())
    if "alg" in key:
        allowed = tuple(name for name in allowed if name == key["alg"])
    if not allowed or not (kid is None or isinstance(kid, str)):
        return None
    try:
        found = jwt.PyJWK(key, allowed[0])
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    return kid, Signer(digest, allowed, found)
