"""Make files that only their owner may read, because they contain accounts, orders and fills.

On Windows a file inherits its permissions from its folder: those that this makes are restricted, and modes change
nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
import tempfile
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from qmt_bridge.system.in_use import patiently

logger = logging.getLogger(__name__)

_OWNER = stat.S_IRUSR | stat.S_IWUSR
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
# What this program writes in its folders. A folder with anything else is not ours.
_NAMES = (
    *("journal-*.sqlite3*", "feeder.lock*", "keys.json*", "keys-used.json*", "keys.lock", "xtdata", "*.part", "store*"),
    *("*.key", "*.key_secret", "clients", "curve", "*.sock", "run", "alerts.json"),
)
_MOST_SHOWN = 10
# What was warned of.
_told: set[Path] = set()


def make_file(path: Path) -> None:
    """Make an empty file if there is none, and let only the owner read one that exists; raise `OSError`."""
    os.close(open_file(path))
    protect(path)


def open_file(path: Path) -> int:
    """Open a file to read and write it, and make one that only the owner may read if there is none; raise `OSError`."""
    check_link(path)
    # Made with this mode: another process could open it before a later change of the mode, and go on reading.
    return os.open(path, os.O_RDWR | os.O_CREAT, _OWNER)


def check_link(path: Path) -> None:
    """Raise `OSError` for a link of another user, which may lead to any file that this one may write."""
    if sys.platform != "win32" and path.is_symlink() and (owner := path.lstat().st_uid) not in (0, os.getuid()):
        # No PermissionError: that is what a file of another user raises, which may be writable all the same.
        raise OSError(errno.ELOOP, f"is a link of {user_name(owner)}", str(path))


def read_small(path: Path, most: int) -> bytes:
    """Return a file of at most `most` bytes; raise `OSError`, also for a longer one and for a folder or a device.

    For files that a hostile hand may have put where ours is expected. Reading another's pipe would wait without end.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = patiently(lambda: os.open(path, flags))
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError("is not a regular file")
        content = opened.read(most + 1)
    if len(content) > most:
        raise OSError(f"has more than {most:,} bytes")
    return content


def stamp(path: str) -> tuple[int, ...]:
    """Return what changes when a file is replaced or written; empty if it is not found, which reading it tells."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def make_part(path: Path) -> Path:
    """Make an empty file with a new name beside `path`, and return it; raise `OSError`."""
    # mkstemp makes a file that only its owner may read, and never takes one that exists.
    file, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
    os.close(file)
    return Path(name)


def protect(path: Path) -> None:
    """Let only the owner read a file; raise `OSError`, also if it belongs to another user."""
    check_link(path)
    if stat.S_IMODE(path.stat().st_mode) & ~_OWNER:
        path.chmod(_OWNER)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter, and those above it; one that exists stays. Raise `OSError`."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        # `parents=True` would make the folders above with the mode of any other folder.
        folder.mkdir(mode=stat.S_IRWXU, exist_ok=True)
    if missing and sys.platform == "win32":
        restrict(missing[-1])
    if not missing and not path.is_dir():
        raise NotADirectoryError(f"{path} is no folder")


def keep_folder(path: Path) -> None:
    """Make a folder of ours, or let only its owner enter one; raise `OSError`.

    Files that an earlier version has left readable are restricted too. A folder that holds other files than ours keeps
    its mode, and a warning says so once.
    """
    make_folder(path)
    if sys.platform == "win32":
        return
    found = path.stat()
    changed = _keep_files(path)
    owner = foreign_owner(path)
    if owner and path not in _told:
        _told.add(path)
        logger.warning("%s belongs to %s, who can replace what is in it: use a folder of your own", path, owner)
    if stat.S_IMODE(found.st_mode) & _OTHERS and found.st_uid == os.getuid():
        # A folder with the sticky bit, such as /tmp, is for everybody.
        foreign = "" if found.st_mode & stat.S_ISVTX else _foreign_name(path)
        if foreign is None:
            path.chmod(stat.S_IRWXU)
            changed.append(str(path))
        elif path not in _told:
            _told.add(path)
            held = f", because it holds {foreign!r}, which is not ours" if foreign else ", because it is for everybody"
            logger.warning("other users can enter %s: its mode stays%s; a folder of its own is safer", path, held)
    if changed:
        logger.warning("other users could read what is now for its owner alone: %s", ", ".join(changed[:_MOST_SHOWN]))


def _keep_files(folder: Path) -> list[str]:
    changed = []
    for path in folder.iterdir():
        try:
            # Not a link: what it leads to may be another program's.
            found = path.lstat()
        except FileNotFoundError:
            # Another process has replaced or removed it meanwhile.
            continue
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and _is_ours(path.name)
        if ours and stat.S_IMODE(found.st_mode) & _OTHERS:
            path.chmod(_OWNER)
            changed.append(path.name)
    return sorted(changed)


def _foreign_name(folder: Path) -> str | None:
    """Return the name of a file or folder that this program does not write; None if there is none."""
    return next((path.name for path in folder.iterdir() if not _is_ours(path.name)), None)


def _is_ours(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _NAMES)


def foreign_owner(path: Path) -> str:
    """Return the user to whom a file or folder belongs, if that is neither this one nor root; raise `OSError`.

    Root works in the folders of all users, and Windows has no such numbers: there the answer is always empty.
    """
    if sys.platform == "win32" or os.getuid() == 0:
        return ""
    owner = path.stat().st_uid
    return "" if owner in (0, os.getuid()) or is_unmapped(owner) else user_name(owner)


def is_unmapped(uid: int) -> bool:
    """Return whether `uid` stands for the users that this container does not know, such as the machine's root."""
    try:
        mapping = Path("/proc/self/uid_map").read_text(encoding="ascii").split()
        overflow = int(Path("/proc/sys/kernel/overflowuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return False
    return uid == overflow and mapping != ["0", "0", "4294967295"]


def user_name(uid: int) -> str:
    """Return how a sentence names a user of Unix."""
    import pwd

    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"the user {uid}"


def is_exposed(path: Path) -> bool:
    """Return whether other users may read or write a file; on Windows, whose rights are no mode, always False."""
    if sys.platform == "win32":
        return False
    try:
        return bool(stat.S_IMODE(path.stat().st_mode) & _OTHERS)
    except OSError:
        return False


def warn_if_exposed(path: Path, what: str) -> None:
    """Log once in this process that other users can read or change a file that holds `what`, and what mends it."""
    if path not in _told and is_exposed(path):
        _told.add(path)
        logger.warning("%s holds %s, and other users can read or change it: chmod 600 %s", path, what, path)


def restrict(folder: Path) -> None:
    """On Windows let only owner, administrators and the system use a folder and what is made in it.

    A folder in a user's profile inherits such rights; one in C:\\ inherits that every user may read it.
    """
    try:
        ended = subprocess.run(
            icacls(folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10
        )
        failed = f"icacls ended with {ended.returncode}" if ended.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as exc:
        failed = str(exc)
    if failed:
        logger.warning("the rights of %s stay those that it inherits: %s", folder, failed)


def icacls(folder: Path) -> list[str]:
    """Return the command of Windows that restricts a folder."""
    program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "icacls.exe")
    # OWNER RIGHTS, SYSTEM and Administrators by their numbers: their names are translated.
    rights = [f"*{sid}:(OI)(CI)F" for sid in ("S-1-3-4", "S-1-5-18", "S-1-5-32-544")]
    return [program, str(folder), "/inheritance:r", "/grant:r", *rights]


def replace(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, as a whole or not at all; raise `OSError`."""
    part = make_part(path)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: part.replace(path))
    except BaseException:
        remove(part)
        raise


def remove(path: Path) -> None:
    """Delete a file if it is there; one that stays in use stays, because what it was for has ended already."""
    with suppress(PermissionError):
        patiently(lambda: path.unlink(missing_ok=True))
