"""Ask a gateway for a page of JSON, or to end something: one request, with the key of the settings."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from qmt_bridge.commands.gateway_address import reachable
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError, QMTBridgeError

# Seconds for one read. A gateway asks all workers for two, and watches a code for some more.
TIMEOUT = 15.0
# Bytes of an answer: each worker finds 200 KiB at most.
MOST_BYTES = 64 * 1024 * 1024


class PageError(QMTBridgeError):
    """A gateway does not answer, or does not serve the request; the text says why."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for the gateway that was named, and for no other."""

    def redirect_request(self, *_: object) -> None:
        return None


class Pages:
    """The pages of the gateway at `url`, or without one at the address of the settings."""

    def __init__(self, url: str | None, config: Config, tls: ssl.SSLContext | None = None) -> None:
        self._url = (url or f"http://{reachable(config.host)}:{config.port}").rstrip("/")
        if urlsplit(self._url).scheme not in ("http", "https") or not urlsplit(self._url).netloc:
            raise ConfigError("URL", f"expected one such as http://127.0.0.1:8000, got {self._url[:80]!r}")
        self._headers = {"X-API-Key": config.api_key} if config.api_key else {}
        handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), urllib.request.ProxyHandler({})]
        if tls is not None:
            handlers.append(urllib.request.HTTPSHandler(context=tls))
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str, **parameters: object) -> dict[str, Any]:
        """Return the JSON object of a page; raise `PageError`."""
        return self._ask("GET", path, parameters)

    def delete(self, path: str, **parameters: object) -> dict[str, Any]:
        """End what a path names; return the answer; raise `PageError`."""
        return self._ask("DELETE", path, parameters)

    def _ask(self, method: str, path: str, parameters: Mapping[str, object]) -> dict[str, Any]:
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        url = f"{self._url}{path}{'?' if query else ''}{query}"
        request = urllib.request.Request(url, headers=self._headers, method=method)
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                body = response.read(MOST_BYTES)
        except urllib.error.HTTPError as exc:
            with exc:
                raise PageError(_told(exc)) from None
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "reason", exc)
            reason = getattr(reason, "strerror", None) or reason
            raise PageError(
                f"{self._url} does not answer: {reason}; is a gateway running there? --url names another one"
            ) from None
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise PageError(f"{self._url} is no gateway of this version: its answer is no JSON object")
        return found


def encoded(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="")


def _told(exc: urllib.error.HTTPError) -> str:
    """Return what an answer with an error says."""
    body = exc.read(10_000).decode("utf-8", "replace")
    try:
        problem = json.loads(body)
        told = f"{problem['code']}: {problem['error']}"
    except (ValueError, KeyError, TypeError):
        told = f"{exc.code} {exc.reason}: {body.strip()[:200]}"
    hint = " (setting api_key, QMT_BRIDGE_API_KEY)" if exc.code in (401, 403) else ""
    return told + hint
