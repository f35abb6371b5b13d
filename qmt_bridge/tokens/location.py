"""Where the public keys of an issuer are: a file, or a URL that is fetched. It may wait for seconds: no event loop."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qmt_bridge import private
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.exposure import is_loopback
from qmt_bridge.system.cutoff import Cutoff
from qmt_bridge.tokens.key_set import KeySet, require_library

# A JWKS has some 1 to 10 KB; one key with its certificates takes 4.
MOST_BYTES = 256 * 1024
# Seconds for one answer of the network, and for the whole fetch.
TIMEOUT = 5.0
WHOLE = 15.0


def is_url(location: str) -> bool:
    """Return whether the keys are fetched, and not read from a file."""
    return "://" in location


def check_tokens(config: Config) -> None:
    """Raise `ConfigError` if the settings of tokens are incomplete, or what they need is missing; fetch nothing."""
    given = [name for name in ("jwt_issuer", "jwt_audience") if getattr(config, name)]
    if not config.jwt_jwks:
        if given:
            raise ConfigError(given[0], "needs jwt_jwks too: without it no token is accepted")
        return
    for name in ("jwt_issuer", "jwt_audience"):
        if name not in given:
            raise ConfigError(name, "is needed with jwt_jwks: a token for another service must open nothing here")
    if is_url(config.jwt_jwks):
        _check_url(config.jwt_jwks)
        require_library()
    else:
        read_keys(config.jwt_jwks)


def read_keys(location: str) -> KeySet:
    """Return the keys at a path or URL; raise `ConfigError`, which names the cause."""
    content = _fetch(location) if is_url(location) else _read(location)
    return KeySet(content, location)


def _read(path: str) -> bytes:
    try:
        return private.read_small(Path(path), MOST_BYTES)
    except OSError as exc:
        raise ConfigError("jwt_jwks", f"cannot read {path}: {exc.strerror or exc}") from exc


def _check_url(url: str) -> None:
    """Raise `ConfigError` for a URL whose answer somebody on the way could replace."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as exc:
        raise ConfigError("jwt_jwks", f"is no URL: {exc}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError("jwt_jwks", "holds a user or a password, which a JWKS does not need")
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("jwt_jwks", "expected a URL such as https://login.example/keys")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ConfigError("jwt_jwks", "expected https: over http somebody on the way could put keys of his own there")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: it could lead to plain http."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _fetch(url: str) -> bytes:
    _check_url(url)
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if url.startswith("http:"):
        # A proxy would see, and could replace, what is meant to stay on this machine.
        handlers.append(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "qmt-bridge"})
    content = b""
    with Cutoff(WHOLE) as cutoff:
        opener = urllib.request.build_opener(*handlers, *cutoff.handlers())
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                while len(content) <= MOST_BYTES and (part := answer.read1(MOST_BYTES)):
                    content += part
        except urllib.error.HTTPError as exc:
            with exc:
                raise ConfigError("jwt_jwks", f"{url} answers with HTTP {exc.code}") from None
        except (OSError, http.client.HTTPException, ValueError) as exc:
            reason = "the answer takes too long" if cutoff.passed else getattr(exc, "reason", None) or exc
            raise ConfigError("jwt_jwks", f"cannot fetch {url}: {reason}") from exc
    if cutoff.passed:
        # An answer without a length ends where its connection ends.
        raise ConfigError("jwt_jwks", f"cannot fetch {url}: the answer takes too long")
    if len(content) > MOST_BYTES:
        raise ConfigError("jwt_jwks", f"{url} answers with more than {MOST_BYTES:,} bytes")
    return content
