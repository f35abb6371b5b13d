"""The folder of a local (ipc) socket: whoever may write there can listen in the place of the feeder.

On Unix alone; the access lists of a folder of Windows are not read, and there trade events have CURVE keys.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Collection
from pathlib import Path

from qmt_bridge import private

# Of the path of a local socket: Linux takes 107, macOS 103.
SOCKET_BYTES = 103
_LONGEST_NAME = "/trade.sock"
# The same for all programs of a user, whatever their environment. XDG_RUNTIME_DIR is not: a service has none, and it is
# emptied when the user logs out.
_SHORT = "/tmp"


def own_folder(data_path: Path) -> Path:
    """Return where the sockets of trade events are by default: in the data folder, or with a long path below /tmp."""
    data = os.path.realpath(data_path)
    folder = Path(data, "run")
    if len(os.fsencode(folder)) + len(_LONGEST_NAME) <= SOCKET_BYTES:
        return folder
    return Path(_SHORT, f"qmt-bridge-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}")


def is_ipc(address: str) -> bool:
    """Return whether an address is that of a local socket."""
    return address.startswith("ipc://")


def folder_of(address: str) -> Path | None:
    """Return the folder of an ipc address; None if it has none (Linux' abstract sockets, and names made by ZeroMQ)."""
    path = address.removeprefix("ipc://")
    return None if path.startswith("@") or path == "*" else Path(os.path.abspath(path)).parent


def is_short(folder: Path) -> bool:
    """Return whether an own folder is the one below /tmp, where every user could have made it before."""
    return folder.parent == Path(_SHORT)


def why_not_trusted(address: str, owners: Collection[int] | None = None) -> str:
    """Return why another user could listen at an ipc address; nothing if only this one, root or its owner could.

    `owners` are the users that may own the folder beside this one and root; None is any user.
    """
    if sys.platform == "win32":
        return "a folder of Windows shows no owner here"
    folder = folder_of(address)
    if folder is None:
        return "it is in no folder, so that every user of the machine may listen there"
    try:
        found = {folder.stat().st_uid} if owners is None and folder.exists() else set[int]()
        return _why_not_trusted(folder, found.union(owners or ()))
    except OSError as exc:
        return f"{exc.filename or folder}: {exc.strerror or exc}"


def why_not_closed(address: str) -> str:
    """Return why users other than the owner, or members of its group, could connect to an ipc address; or nothing."""
    folder = folder_of(address)
    if sys.platform == "win32" or folder is None or not folder.exists():
        return ""
    mode = stat.S_IMODE(folder.stat().st_mode)
    return f"every user may enter {folder} (mode {mode:04o}): `chmod 700 {folder}`" if mode & stat.S_IXOTH else ""


def share(address: str) -> None:
    """Let the group of the folder connect to a bound socket, if it may enter the folder; raise `OSError`.

    Whoever connects needs the right to write to the socket, which ZeroMQ makes by the umask.
    """
    folder = folder_of(address)
    if sys.platform != "win32" and folder is not None:
        is_shared = folder.stat().st_mode & stat.S_IXGRP
        os.chmod(address.removeprefix("ipc://"), 0o660 if is_shared else 0o600)


def _why_not_trusted(folder: Path, owners: set[int]) -> str:
    ours = {0, os.getuid()}
    trusted = ours | owners
    # As it is named, and as it is once links are followed.
    for named in dict.fromkeys((folder, Path(os.path.realpath(folder)))):
        below: Path | None = None
        for path in (named, *named.parents):
            if path.is_symlink() and path.lstat().st_uid not in trusted:
                return f"{path} is a link of {private.user_name(path.lstat().st_uid)}"
            # In a folder with the sticky bit, such as /tmp, nobody can replace what is there, if it is there.
            is_kept = below is not None and os.path.lexists(below) and below.lstat().st_uid in ours
            said = _writers(path, trusted, is_kept) if path.exists() else ""
            if said:
                return said
            below = path
    return ""


def _writers(path: Path, trusted: set[int], is_kept: bool) -> str:
    """Return who else could put something into a folder, or replace what is there.

    `is_kept` says that the sticky bit, if there is one, keeps others from replacing it.
    """
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in trusted and not private.is_unmapped(found.st_uid):
        return f"{path} belongs to {private.user_name(found.st_uid)}"
    by_group = bool(mode & stat.S_IWGRP) and not _is_alone(found)
    writers = "every user" if mode & stat.S_IWOTH else "its group" if by_group else ""
    if writers and not (is_kept and mode & stat.S_ISVTX):
        return f"{writers} may write in {path} (mode {mode:04o})"
    return ""


def _is_alone(found: os.stat_result) -> bool:
    """Return whether the group of a folder has its owner as the only member, as many systems give one to each user."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return group.gr_gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
