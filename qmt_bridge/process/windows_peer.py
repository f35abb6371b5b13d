"""Whose the other end of a local TCP connection is, on Windows.

The table of TCP connections tells the process of each end, and the token of a process its user. Windows does not open
the token of a process that runs as administrator, or as another user, for a process without administrator's rights.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

# Address and port, as `socket.getsockname` begins.
Address = tuple[str, int]
_ESTABLISHED = 5
# MIB_TCPROW_OWNER_MODULE: state, local address and port, remote address and port, process, since when; and what the
# service of a process may say about itself.
_ROW = struct.Struct("<I4sI4sIIQ128x")
# MIB_TCP6ROW_OWNER_MODULE: local address, scope and port, remote address, scope and port, state, process, since when.
_ROW6 = struct.Struct("<16s4xI16s4xIIIQ128x")
# The number of rows, which are aligned to eight bytes.
_BEFORE = 8


class End(NamedTuple):
    """A process that has an end of a connection."""

    process: int
    # When the end was made, in 100 ns since 1601; 0 where the system does not tell it.
    since: int


def end_in(table: bytes, peer: Address, here: Address, *, is_ipv6: bool) -> End | None:
    """Return the process that has the end `peer` of an established connection to `here`; None if it is not there."""
    wanted = (_plain(peer[0]), peer[1], _plain(here[0]), here[1])
    for state, local, local_port, remote, remote_port, process, since in _rows(table, is_ipv6):
        ends = (_plain(local), _port(local_port), _plain(remote), _port(remote_port))
        if state == _ESTABLISHED and ends == wanted:
            return End(process, since)
    return None


def _rows(table: bytes, is_ipv6: bool) -> Iterator[tuple[int, bytes, int, bytes, int, int, int]]:
    row = _ROW6 if is_ipv6 else _ROW
    count = int.from_bytes(table[:4], "little") if table else 0
    for found in row.iter_unpack(table[_BEFORE : _BEFORE + count * row.size]):
        if is_ipv6:
            local, local_port, remote, remote_port, state, process, since = found
            yield state, local, local_port, remote, remote_port, process, since
        else:
            yield found


def _plain(address: str | bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    found = ipaddress.ip_address(address.partition("%")[0] if isinstance(address, str) else address)
    # A program that uses IPv6 sockets for both.
    return getattr(found, "ipv4_mapped", None) or found


def _port(number: int) -> int:
    # The first two bytes are the port, as the network writes it.
    return int.from_bytes(number.to_bytes(4, "little")[:2], "big")


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _TCP_TABLE_OWNER_MODULE_CONNECTIONS = 7
    _FAMILIES = ((2, False), (23, True))
    _ERROR_INSUFFICIENT_BUFFER = 122
    _PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
    _TOKEN_QUERY = 8
    _TOKEN_USER = 1
    # Of the user's SID, which has at most 68 bytes, and what points at it.
    _USER_BYTES = 256
    # Attempts to read a table that grows meanwhile.
    _ATTEMPTS = 5

    _iphlpapi, _kernel, _advapi = ctypes.WinDLL("iphlpapi"), ctypes.WinDLL("kernel32"), ctypes.WinDLL("advapi32")
    _kernel.OpenProcess.restype = wintypes.HANDLE
    _kernel.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
    _kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    _kernel.GetCurrentProcess.restype = wintypes.HANDLE
    _kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *(ctypes.POINTER(ctypes.c_uint64),) * 4)
    _advapi.OpenProcessToken.argtypes = (wintypes.HANDLE, wintypes.DWORD, ctypes.POINTER(wintypes.HANDLE))
    _advapi.GetTokenInformation.argtypes = (
        *(wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD),
        ctypes.POINTER(wintypes.DWORD),
    )
    _advapi.GetLengthSid.argtypes = (ctypes.c_void_p,)
    _advapi.GetLengthSid.restype = wintypes.DWORD

    def is_ours(peer: Address, here: Address) -> bool | None:
        """Return whether the end `peer` of a connection to `here` is a process of this user; None if not known."""
        for family, is_ipv6 in _FAMILIES:
            end = end_in(_table(family), peer, here, is_ipv6=is_ipv6)
            if end is not None:
                return _is_of_this_user(end)
        return None

    def _table(family: int) -> bytes:
        """Return the established connections; empty if the system does not tell them."""
        size = wintypes.DWORD(0)
        buffer = ctypes.create_string_buffer(0)
        for _ in range(_ATTEMPTS):
            error = _iphlpapi.GetExtendedTcpTable(
                buffer, ctypes.byref(size), False, family, _TCP_TABLE_OWNER_MODULE_CONNECTIONS, 0
            )
            if error != _ERROR_INSUFFICIENT_BUFFER:
                return b"" if error else buffer.raw
            buffer = ctypes.create_string_buffer(size.value)
        return b""

    def _is_of_this_user(end: End) -> bool | None:
        handle = _kernel.OpenProcess(_PROCESS_QUERY_LIMITED_INFORMATION, False, end.process)
        if not handle:
            return None
        try:
            began, *others = (ctypes.c_uint64() for _ in range(4))
            if not _kernel.GetProcessTimes(handle, began, *others) or 0 < end.since < began.value:
                # The process that made the connection has ended, and another one got its number.
                return None
            theirs, ours = _user(handle), _user(_kernel.GetCurrentProcess())
            return None if theirs is None or ours is None else theirs == ours
        finally:
            _kernel.CloseHandle(handle)

    def _user(process: int) -> bytes | None:
        """Return the SID of the user that a process runs as; None if the system does not tell it."""
        token = wintypes.HANDLE()
        if not _advapi.OpenProcessToken(process, _TOKEN_QUERY, token):
            return None
        try:
            buffer, size = ctypes.create_string_buffer(_USER_BYTES), wintypes.DWORD()
            if not _advapi.GetTokenInformation(token, _TOKEN_USER, buffer, len(buffer), size):
                return None
            # It begins with a pointer to the SID behind it.
            sid = ctypes.c_void_p.from_buffer(buffer)
            return ctypes.string_at(sid, _advapi.GetLengthSid(sid))
        finally:
            _kernel.CloseHandle(token)
