"""The targets of alerts: what is sent to each, how it is signed, and what its answer means. Pure: time is an argument.

Sources: open.work.weixin.qq.com (group robots), open.dingtalk.com (custom robots, additional signature),
open.feishu.cn (custom bots, signature verification).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple
from urllib.parse import quote_plus, urlsplit

import msgspec

from qmt_bridge.alerts.notice import Notice
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.exposure import is_loopback

Kind = Literal["wecom", "dingtalk", "feishu", "webhook"]
# sent: it was taken. again: it may be taken later. refused: it would be refused again.
Outcome = Literal["sent", "again", "refused"]

# Bytes of a text: 2,048 of WeCom, 20,000 of DingTalk, 20,000 of a whole request to Feishu.
MOST_TEXT: Mapping[Kind, int] = {"wecom": 2000, "dingtalk": 15000, "feishu": 15000}
# A robot of WeCom and of DingTalk takes 20 messages a minute, one of Feishu 100.
PACE: Mapping[Kind, float] = {"wecom": 3.0, "dingtalk": 3.0, "feishu": 0.6, "webhook": 0.0}
# The codes by which a robot says that messages come too fast, or that it is busy.
_BUSY = frozenset((45009, 45033, -1, 130101, 660026, 9499, 11232, 99991400))
# HTTP: a request may be repeated after these, and after a fault of the server.
_AGAIN = frozenset((408, 425, 429))


class Target(NamedTuple):
    """One webhook. `url` and `secret` are never shown."""

    kind: Kind
    url: str
    secret: str = ""

    def __repr__(self) -> str:
        return f"Target({self.kind!r})"

    @property
    def joins(self) -> bool:
        """Return whether several messages that wait go as one: people read them, and their number is limited."""
        return self.kind != "webhook"


class Request(NamedTuple):
    """What is to be posted."""

    url: str
    body: bytes


def check_url(setting: str, url: str, *, plain: bool) -> None:
    """Raise `ConfigError` for what is no URL of a webhook; `plain` allows http to other machines. It is never shown."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ConfigError(setting, "is no URL") from None
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(setting, "expected a URL that begins with https://")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(setting, "holds a user or a password, which is not sent")
    if parts.scheme == "http" and not plain and not is_loopback(host):
        raise ConfigError(setting, "expected https: over http others on the way could read the key in it")


def request_of(target: Target, notices: Sequence[Notice], now: float) -> Request:
    """Return the request that tells `notices`, one for a webhook; `now` is in seconds since 1970."""
    if target.kind == "webhook":
        return Request(target.url, msgspec.json.encode(notices[0]))
    text = cut("\n\n".join(each.text for each in notices), MOST_TEXT[target.kind])
    body: dict[str, Any]
    if target.kind == "feishu":
        body = {"msg_type": "text", "content": {"text": text}}
        if target.secret:
            seconds = str(int(now))
            body = {"timestamp": seconds, "sign": sign_feishu(seconds, target.secret), **body}
        return Request(target.url, msgspec.json.encode(body))
    body = {"msgtype": "text", "text": {"content": text}}
    url = target.url
    if target.kind == "dingtalk" and target.secret:
        ms = str(round(now * 1000))
        url += f"{'&' if '?' in url else '?'}timestamp={ms}&sign={quote_plus(sign_dingtalk(ms, target.secret))}"
    return Request(url, msgspec.json.encode(body))


def sign_dingtalk(timestamp: str, secret: str) -> str:
    """Return the signature of DingTalk, in Base64: HMAC-SHA256 of ``timestamp\\nsecret`` with the secret as the key."""
    text = f"{timestamp}\n{secret}".encode()
    return base64.b64encode(hmac.digest(secret.encode(), text, hashlib.sha256)).decode()


def sign_feishu(timestamp: str, secret: str) -> str:
    """Return the signature of Feishu, in Base64: HMAC-SHA256 of nothing with ``timestamp\\nsecret`` as the key."""
    key = f"{timestamp}\n{secret}".encode()
    return base64.b64encode(hmac.digest(key, b"", hashlib.sha256)).decode()


def outcome_of(target: Target, status: int, answer: bytes) -> tuple[Outcome, str]:
    """Return what an answer means, and a sentence about it without anything that the request held."""
    if status in _AGAIN or status >= 500:
        return "again", f"HTTP {status}"
    if not 200 <= status < 300:
        return "refused", f"HTTP {status}"
    if target.kind == "webhook":
        return "sent", f"HTTP {status}"
    code, said = _answered(answer)
    if code == 0:
        return "sent", "errcode 0"
    shown = said.replace(target.secret, "***")[:200] if target.secret else said[:200]
    return "again" if code is None or code in _BUSY else "refused", f"errcode {code}: {shown}"


def _answered(answer: bytes) -> tuple[int | None, str]:
    """Return the code and the text of a robot's answer; None for an answer without a code, as of a proxy."""
    try:
        found = msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, "no JSON"
    if not isinstance(found, dict):
        return None, "no JSON object"
    for name, text in (("errcode", "errmsg"), ("code", "msg"), ("StatusCode", "StatusMessage")):
        code = found.get(name)
        if isinstance(code, int) and not isinstance(code, bool):
            return code, str(found.get(text, ""))
    return None, "no code"


def cut(text: str, most: int) -> str:
    """Return a text of at most `most` bytes, marked where it is cut."""
    encoded = text.encode()
    if len(encoded) <= most:
        return text
    return encoded[: most - len("…".encode())].decode(errors="ignore") + "…"
