"""The files of the keys in the data folder: read by every gateway worker, changed by `qmt-bridge key`.

``keys.json`` holds the keys, ``keys-used.json`` when each was last used. The second is written by gateways, which so
need no right to change a key. Each is replaced as a whole, under one lock, so that no reader sees half of it and two
changes at the same time are both kept.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec

from qmt_bridge import private
from qmt_bridge.errors import ConfigError
from qmt_bridge.keys.key import MOST_KEYS, Key

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# A key takes some 400 bytes.
MOST_BYTES = 2 * 1024 * 1024
# Seconds that a change waits for the lock, and between two attempts to take it.
LOCK_SECONDS = 10.0
LOCK_AGAIN = 0.02


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    version: Literal[1]
    keys: list[Key]


_decoder = msgspec.json.Decoder(_KeyFile)
_used_decoder = msgspec.json.Decoder(dict[str, int])


def keys_path(folder: Path) -> Path:
    """Return the file of the keys in a data folder."""
    return folder / "keys.json"


def read_keys(folder: Path) -> tuple[Key, ...]:
    """Return the keys of a data folder, none if it has no such file; raise `ConfigError` for one that is damaged."""
    path = keys_path(folder)
    try:
        content = _read(path)
        if content is not None and (owner := private.foreign_owner(path)):
            raise ConfigError(str(path), f"belongs to {owner}, who could give any rights to keys of his own")
        keys = () if content is None else tuple(_decoder.decode(content).keys)
    except OSError as exc:
        raise ConfigError(str(path), f"cannot read the keys: {exc.strerror or exc}") from exc
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as exc:
        raise ConfigError(str(path), f"is no file of keys: {exc}") from exc
    if len({key.name for key in keys}) < len(keys) or len({key.sha256 for key in keys}) < len(keys):
        raise ConfigError(str(path), "names a key twice")
    if len(keys) > MOST_KEYS:
        raise ConfigError(str(path), f"holds {len(keys)} keys; at most {MOST_KEYS} are read")
    return keys


def change_keys(folder: Path, alter: Callable[[tuple[Key, ...]], Iterable[Key]]) -> None:
    """Replace the keys of a data folder by what `alter` makes of them; raise `ConfigError`, also that of `alter`."""
    path = keys_path(folder)
    try:
        private.keep_folder(folder)
        with _locked(folder):
            keys = list(alter(read_keys(folder)))
            if len(keys) > MOST_KEYS:
                raise ConfigError(str(path), f"holds at most {MOST_KEYS} keys")
            private.replace(path, msgspec.json.format(msgspec.json.encode(_KeyFile(1, keys)), indent=1) + b"\n")
    except OSError as exc:
        raise ConfigError(str(path), f"cannot change the keys: {exc.strerror or exc}") from exc


def read_used(folder: Path) -> dict[str, int]:
    """Return when each key was last used (seconds since 1970), by its hash; empty if that is not known."""
    with suppress(OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        content = _read(_used_path(folder))
        return {} if content is None else _used_decoder.decode(content)
    return {}


def note_used(folder: Path, used: Mapping[str, int]) -> None:
    """Note when keys were used; raise `OSError`, also if another process holds the lock now (`BlockingIOError`)."""
    with _locked(folder, 0.0):
        known = {key.sha256 for key in read_keys(folder)}
        before = read_used(folder)
        # A key that was revoked is forgotten here too.
        times = {name: max(before.get(name, 0), used.get(name, 0)) for name in known if name in before or name in used}
        private.replace(_used_path(folder), msgspec.json.encode(times))


def stamp(folder: Path) -> tuple[int, ...]:
    """Return what changes when the file of the keys is replaced; empty if there is none. Raise `OSError`."""
    try:
        found = os.stat(keys_path(folder))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_dev


def _used_path(folder: Path) -> Path:
    return folder / "keys-used.json"


def _read(path: Path) -> bytes | None:
    try:
        return private.read_small(path, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        # A gateway whose user may not enter the folder has no keys there, as before there were any.
        if os.access(path.parent, os.X_OK):
            raise
        return None


@contextmanager
def _locked(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the lock of the folder's keys; wait for it for so many seconds, then raise `OSError`."""
    path = folder / "keys.lock"
    # The system gives the lock back if this process ends.
    file = private.open_file(path)
    try:
        until = time.monotonic() + seconds
        while not _take(file):
            if time.monotonic() >= until:
                raise BlockingIOError(f"another process holds {path}")
            time.sleep(LOCK_AGAIN)
        yield
    finally:
        os.close(file)


def _take(file: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
