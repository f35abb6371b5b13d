"""A file with a CURVE key: ZeroMQ's certificate, whose metadata name the client and its roles.

The files are those of pyzmq and czmq. They are written here, because pyzmq makes the file of a secret readable for
everybody before it can be protected.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from qmt_bridge import private
from qmt_bridge.errors import ConfigError

Role = Literal["market", "trade", "ask", "download", "admin"]
"""What a client key may do: receive market data, receive trade events, ask for the journal, start downloads, and survey
all workers with their clients."""
ROLES: tuple[str, ...] = get_args(Role)

# A certificate takes some 400 bytes.
MOST_BYTES = 16 * 1024
# Of a key in Z85, ZeroMQ's text form of 32 bytes.
_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_FIELD = re.compile(r'^\s*(name|roles|public-key|secret-key)\s*=\s*"([^"\n]*)"\s*$', re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


class Certificate(NamedTuple):
    """What a file says; keys are Z85. A file without roles, as earlier versions wrote it, has all of them."""

    name: str
    public: bytes
    secret: bytes | None
    roles: frozenset[str]


def checked_name(name: str) -> str:
    """Return the name of a client key; raise `ConfigError` for one that cannot be a file's on every system."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError("--name", f"has letters, digits, '.', '_' and '-', at most 64, got {name[:80]!r}")
    return name


def checked_roles(text: str) -> frozenset[str]:
    """Return the roles in a text such as "trade,ask"; raise `ConfigError` for an unknown one, and for none."""
    roles = [role.strip() for role in text.split(",") if role.strip()]
    unknown = [role for role in roles if role not in ROLES]
    if unknown or not roles:
        got = f", got {unknown[0][:40]!r}" if unknown else ""
        raise ConfigError("roles", f"expected some of {','.join(ROLES)}{got}")
    return frozenset(roles)


def read_certificate(path: Path) -> Certificate:
    """Read a file; raise `OSError`, or `ConfigError` for one that is no certificate."""
    try:
        content = private.read_small(path, MOST_BYTES)
    except OSError as exc:
        if exc.errno is not None:
            raise
        # It could be read, but is too long, or a pipe.
        raise ConfigError(str(path), f"{exc}, and so is no file of a CURVE key") from None
    fields: dict[str, str] = {}
    for field, value in _FIELD.findall(content.decode("utf-8-sig", "replace")):
        if fields.setdefault(field, value) != value:
            raise ConfigError(str(path), f"has two values of {field}")
    keys = [fields[field] for field in ("public-key", "secret-key") if field in fields]
    if "public-key" not in fields or not all(_KEY.fullmatch(key) for key in keys):
        raise ConfigError(str(path), "is no file of a CURVE key")
    try:
        roles = checked_roles(fields["roles"]) if "roles" in fields else frozenset(ROLES)
    except ConfigError as exc:
        raise ConfigError(str(path), str(exc)) from None
    secret = fields["secret-key"].encode() if "secret-key" in fields else None
    return Certificate(fields.get("name", path.stem), fields["public-key"].encode(), secret, roles)


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Write a new file that only its owner may read; raise `OSError`, also if there is one already."""
    lines = ["#   A CURVE key of QMT Bridge, in the form of ZeroMQ's certificates.", "", "metadata"]
    lines += [f'    name = "{certificate.name}"']
    if certificate.roles:
        lines += [f'    roles = "{",".join(role for role in ROLES if role in certificate.roles)}"']
    lines += ["curve", f'    public-key = "{certificate.public.decode()}"']
    if certificate.secret is not None:
        lines += [f'    secret-key = "{certificate.secret.decode()}"']
    # With this mode from the first moment: another process could open it before a later change of the mode.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(file, "wb") as opened:
        opened.write(("\n".join(lines) + "\n").encode())
        opened.flush()
        os.fsync(file)
