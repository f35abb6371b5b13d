"""Post one request to a webhook, within a limit for the whole of it.

It may wait for seconds, so it is not called on the thread that watches.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.targets.target import Outcome, Request, Target, outcome_of, request_of
from qmt_bridge.keys.exposure import is_loopback
from qmt_bridge.system.cutoff import Cutoff

# Seconds for one answer of the network, and for the whole request.
TIMEOUT = 5.0
WHOLE = 10.0
# An answer has some hundred bytes; more of one is not read.
MOST_BYTES = 64 * 1024


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: alerts go where the settings say."""

    def redirect_request(self, *_: Any) -> None:
        return None


def deliver(target: Target, notices: Sequence[Notice]) -> tuple[Outcome, str]:
    """Post `notices` to a target; return what became of them, with a sentence that holds no URL and no secret."""
    try:
        # A robot says in its answer whether it took the message; of another program the status says it.
        status, answer = _post(request_of(target, notices, time.time()), reads=target.kind != "webhook")
    except (OSError, http.client.HTTPException, ValueError) as exc:
        return "again", _shown(exc)
    return outcome_of(target, status, answer)


def _shown(exc: Exception) -> str:
    """Return what a failure is, without the texts of libraries that may repeat the URL."""
    reason = getattr(exc, "reason", exc)
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return type(reason if isinstance(reason, Exception) else exc).__name__


def _post(request: Request, *, reads: bool) -> tuple[int, bytes]:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(urlsplit(request.url).hostname or ""):
        # A proxy of the environment is for other machines.
        handlers.append(urllib.request.ProxyHandler({}))
    posted = urllib.request.Request(
        request.url,
        request.body,
        {"Content-Type": "application/json; charset=utf-8", "User-Agent": "qmt-bridge"},
        method="POST",
    )
    with Cutoff(WHOLE) as cutoff:
        opener = urllib.request.build_opener(*handlers, *cutoff.handlers())
        try:
            with opener.open(posted, timeout=TIMEOUT) as answer:
                status, content = int(answer.status), answer.read(MOST_BYTES) if reads else b""
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, b""
        if reads and cutoff.passed:
            # An answer without a length ends where its connection ends.
            raise TimeoutError("the answer takes too long")
        return status, content
