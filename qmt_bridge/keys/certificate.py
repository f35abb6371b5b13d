"""The files of CURVE keys, as pyzmq and czmq write them: a public key, or a pair. Bounded, and refused by name.

pyzmq's own reader takes a file of any length, and raises IndexError for a line without a value.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from qmt_bridge import private

# A certificate takes some 500 bytes.
MOST_BYTES = 64 * 1024
# Files in one folder of client keys.
MOST_FILES = 10_000
# 32 bytes as Z85.
_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_LINE = re.compile(rb"(public|secret)-key\s*=\s*(.*)")


class Certificate(NamedTuple):
    """A public key, and the secret one if the file holds it; 40 characters of Z85 each."""

    public: bytes
    secret: bytes | None


def read_certificate(path: Path) -> Certificate:
    """Read one file; raise `OSError` if it cannot be read, `ValueError` if it holds no key, with its name."""
    try:
        content = private.read_small(path, MOST_BYTES)
    except OSError as exc:
        raise type(exc)(f"{path}: {exc.strerror or exc}") from exc
    keys: dict[bytes, bytes] = {}
    for line in content.splitlines():
        found = _LINE.fullmatch(line.strip())
        if found:
            key = found[2].strip(b" \t'\"")
            if not _KEY.fullmatch(key):
                raise ValueError(f"{path}: its {found[1].decode()} key is not 40 characters of Z85")
            keys.setdefault(found[1], key)
    if b"public" not in keys:
        raise ValueError(f"{path}: it holds no public key")
    return Certificate(keys[b"public"], keys.get(b"secret"))


def read_certificates(folder: Path) -> frozenset[bytes]:
    """Return the public keys of all ``*.key`` files of a folder; raise `OSError` or `ValueError` with a file's name."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: there is no such folder")
    files = sorted(path for path in folder.iterdir() if path.suffix == ".key")
    if len(files) > MOST_FILES:
        raise ValueError(f"{folder}: it holds more than {MOST_FILES:,} keys")
    return frozenset(read_certificate(path).public for path in files)
