"""Convert xtquant's payloads to plain dicts, lists, strings and numbers. Never rename, round or drop a field.

Only `text` decodes bytes to text, because brokers write GBK where UTF-8 is expected.

Pure; runs on several callback threads of xtquant at the same time. It does not import xtquant or numpy: bson's Int64 is
a subclass of int, and numpy's objects are recognised by their module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# The types of most fields of a tick; these are taken as they are.
_AS_IS = frozenset((int, float, str, bool, type(None)))
# Stands for bytes that cannot be decoded.
REPLACEMENT = "\ufffd"

# Is called with the reason for each record that cannot be published.
Unfit = Callable[[Exception], object]


class _Unfit(Exception):
    """A value has no plain form; `path` is built from the inside out, so that it costs nothing without an error."""

    def __init__(self, error: type[Exception], reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
        self.path: list[object] = []


def plain(value: object) -> Any:
    """Return `value` as dict, list, str, int, float, bool or None, at every depth; NaN stays NaN.

    Bytes become text. Raise TypeError for a value without such a form (datetime, Decimal, ...), and ValueError for two
    keys that become the same text. Each error names the place, such as ``payload['600519.SH'][0]['time']``.
    """
    try:
        return _plain(value)
    except _Unfit as exc:
        raise _named(exc) from None


def text(value: bytes | str) -> str:
    """Return a text of the terminal: bytes as UTF-8, else as gb18030 (GBK and more), else with U+FFFD.

    Native buffers have fixed lengths: a text ends at the first zero byte, because the rest may be left from an earlier
    text, and an incomplete last character is cut off. A str is decoded already; lone surrogates, which no encoding has,
    are replaced.
    """
    if isinstance(value, str):
        value = value.partition("\0")[0]
        return value if value.isascii() else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    value = value.partition(b"\0")[0]
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        # The last character is incomplete. With nothing before it, it may be the one character of a GBK text.
        if exc.start and exc.end == len(value) and exc.reason == "unexpected end of data":
            return value[: exc.start].decode()
    # A Chinese character has three bytes in UTF-8, and GBK hardly ever looks like that: such a text is damaged UTF-8.
    damaged = value.decode("utf-8", "replace")
    read = sum(char >= "\u0800" and char != REPLACEMENT for char in damaged)
    if read > damaged.count(REPLACEMENT):
        return damaged
    try:
        return value.decode("gb18030")
    except UnicodeDecodeError as exc:
        # The last character, of two or four bytes, is incomplete.
        if exc.end == len(value) and exc.reason == "incomplete multibyte sequence" and value[exc.start] != 0xFF:
            return value[: exc.start].decode("gb18030")
    return value.decode("gb18030", "replace")


def quote(payload: object, unfit: Unfit) -> dict[str, list[Any]]:
    """Return the body of a quote or depth callback, ``{code: [record, ...]}``; a bare record becomes a list of one.

    A record without a plain form is left out, and `unfit` is called; a code without any record is left out too. Raise
    TypeError for a payload that is no map.
    """
    if not isinstance(payload, Mapping):
        raise TypeError(f"payload must be a map, not {_type_name(payload)}")
    body: dict[str, list[Any]] = {}
    for key, value in payload.items():
        try:
            code = _plain_key(key)
            if code in body:
                raise _Unfit(ValueError, f"has two keys of the same text {code!r}")
        except Exception as exc:
            unfit(_named(exc))
            continue
        records = body[code] = []
        is_list = isinstance(value, list | tuple)
        for position, record in enumerate(value if is_list else (value,)):
            try:
                converted = _plain(record)
                if type(converted) is not dict:
                    raise _Unfit(TypeError, f"must be a record, not {_type_name(record)}")
                records.append(converted)
            # Any exception: the record may also be nested too deep, or raise by itself.
            except Exception as exc:
                unfit(_named(exc, key, position) if is_list else _named(exc, key))
    return {code: records for code, records in body.items() if records}


def whole(payload: object, unfit: Unfit) -> Iterator[dict[str, Any]]:
    """Yield the ticks by code of a whole-quote callback, ``{code: tick}``; `unfit` as in `quote`.

    If codes have lists of ticks, the first tick of every code comes first, then every second one.
    """
    columns = quote(payload, unfit)
    for row in range(max(map(len, columns.values()), default=0)):
        yield {code: column[row] for code, column in columns.items() if row < len(column)}


def document(payload: object) -> dict[str, Any]:
    """Return a map in its plain form, such as a formula's ``{"dbt":..,"timelist":[ms],"outputs":{name:[value]}}``."""
    if not isinstance(payload, Mapping):
        raise TypeError(f"payload must be a map, not {_type_name(payload)}")
    converted: dict[str, Any] = plain(payload)
    return converted


def _named(exc: Exception, *path: object) -> Exception:
    """Return `exc`, raised at `path` of a payload, as the error to report, with the place of the value."""
    if not isinstance(exc, _Unfit):
        return exc
    place = "".join(f"[{key!r}]" for key in (*path, *reversed(exc.path)))
    return exc.error(f"payload{place} {exc.reason}")


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _AS_IS:
        return value
    # The checks from here on include subclasses: bson's Int64, enumerations, numpy.float64 and numpy.str_.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple):
        return _plain_list(value)
    if isinstance(value, Mapping):
        return _plain_map(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if kind is bytes or kind is bytearray:
        # Not subclasses: bson's Binary, for example, is no text.
        return text(bytes(value))
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain_numpy(value)
    raise _Unfit(TypeError, f"is {_type_name(value)}, which has no plain form")


def _plain_list(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    # The usual case: a thousand prices or volumes of a depth, all of one type.
    kinds = set(map(type, values))
    if kinds <= _AS_IS:
        return list(values)
    converted = []
    for position, item in enumerate(values):
        try:
            converted.append(_plain(item))
        except _Unfit as exc:
            exc.path.append(position)
            raise
    return converted


def _plain_map(values: Mapping[Any, Any]) -> dict[str, Any]:
    converted = {}
    for key, item in values.items():
        name = key if type(key) is str else _plain_key(key)
        if type(item) in _AS_IS:
            converted[name] = item
        else:
            try:
                converted[name] = _plain(item)
            except _Unfit as exc:
                exc.path.append(key)
                raise
    if len(converted) != len(values):
        raise _Unfit(ValueError, f"has two keys of the same text among {list(values)!r}")
    return converted


def _plain_key(key: object) -> str:
    converted = _plain(key)
    if isinstance(converted, bool) or not isinstance(converted, int | str):
        raise _Unfit(TypeError, f"has the key {key!r}, and {_type_name(key)} cannot be a key")
    return str(converted)


def _plain_numpy(value: Any) -> Any:
    converted = value.tolist()
    # numpy.longdouble has no counterpart in Python and returns itself; a record would lose the names of its fields.
    if type(converted) is type(value) or value.dtype.names is not None:
        raise _Unfit(TypeError, f"is {_type_name(value)} of {value.dtype}, which has no plain form")
    return _plain(converted)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
