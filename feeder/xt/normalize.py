"""xtquant payloads to what we publish: plain dicts, lists, strings and numbers. Never renames, rounds or drops a field.

Text that comes as bytes is read by `text`, here and nowhere else: brokers write GBK where UTF-8 is expected.

Pure, and runs on xtquant's callback threads, several at once. It does not import xtquant or numpy: bson's Int64 is
known as an int, numpy's objects by their module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Most of a tick; these need no look inside.
_AS_IS = frozenset((float, str, bool, type(None)))
_INTS = frozenset((int,))
# What MessagePack can hold.
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
# Stands for what cannot be read.
REPLACEMENT = "\ufffd"

# Told of each record that cannot be published, and why.
Unfit = Callable[[Exception], object]


class _Unfit(Exception):
    """A value has no plain form; `path` grows from the inside out, so that it costs nothing where all is well."""

    def __init__(self, error: type[Exception], reason: str) -> None:
        super().__init__(reason)
        self.error = error
        self.reason = reason
        self.path: list[object] = []


def plain(value: object) -> Any:
    """Return `value` as dict, list, str, int, float, bool or None, at every depth; NaN stays NaN.

    Bytes are text. Raise TypeError for what has no such form (datetime, Decimal, ...), OverflowError for an int that
    does not fit 64 bits, and ValueError for two keys that become one; each names the place,
    ``payload['600519.SH'][0]['time']``.
    """
    try:
        return _plain(value)
    except _Unfit as exc:
        raise _named(exc) from None


def text(value: bytes | str) -> str:
    """Return a text of the terminal: bytes as UTF-8, else as gb18030 (GBK and more), else with U+FFFD.

    Native buffers have fixed lengths: a text ends at the first zero, whatever an earlier one has left after it, and
    what is left of a last character is cut off. A str is read already; lone surrogates, which no encoding has, are
    replaced.
    """
    if isinstance(value, str):
        value = value.partition("\0")[0]
        return value if value.isascii() else value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    value = value.partition(b"\0")[0]
    try:
        return value.decode()
    except UnicodeDecodeError as exc:
        # Only its end is missing; but without a beginning it may be the one character of a GBK text.
        if exc.start and exc.end == len(value) and exc.reason == "unexpected end of data":
            return value[: exc.start].decode()
    # Chinese is three bytes a character in UTF-8, and GBK hardly ever looks like that: such a text is only damaged.
    damaged = value.decode("utf-8", "replace")
    read = sum(char >= "\u0800" and char != REPLACEMENT for char in damaged)
    if read > damaged.count(REPLACEMENT):
        return damaged
    try:
        return value.decode("gb18030")
    except UnicodeDecodeError as exc:
        # The parts of a character of two bytes, or of four, that are left of it.
        if exc.end == len(value) and exc.reason == "incomplete multibyte sequence" and value[exc.start] != 0xFF:
            return value[: exc.start].decode("gb18030")
    return value.decode("gb18030", "replace")


def quote(payload: object, unfit: Unfit) -> dict[str, list[Any]]:
    """Return the body of a quote or depth callback, ``{code: [record, ...]}``; a bare record becomes a list of one.

    A record without a plain form costs only itself: `unfit` is told, and a code that has none left is left out. Raise
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
            # Also what is nested too deep for us, or raises of itself.
            except Exception as exc:
                unfit(_named(exc, key, position) if is_list else _named(exc, key))
    return {code: records for code, records in body.items() if records}


def whole(payload: object, unfit: Unfit) -> Iterator[dict[str, Any]]:
    """Yield the ticks by code of a whole-quote callback, ``{code: tick}``; `unfit` as in `quote`.

    Where codes come with lists of ticks, the first tick of every code comes first, then the second ones.
    """
    columns = quote(payload, unfit)
    for row in range(max(map(len, columns.values()), default=0)):
        yield {code: column[row] for code, column in columns.items() if row < len(column)}


def document(payload: object) -> dict[str, Any]:
    """Return a map as it came, such as a formula's ``{"dbt":..,"timelist":[ms],"outputs":{name:[value]}}``."""
    if not isinstance(payload, Mapping):
        raise TypeError(f"payload must be a map, not {_type_name(payload)}")
    converted: dict[str, Any] = plain(payload)
    return converted


def _named(exc: Exception, *path: object) -> Exception:
    """Return `exc`, met at `path` of a payload, as the error that it is and with the place of the value."""
    if not isinstance(exc, _Unfit):
        return exc
    place = "".join(f"[{key!r}]" for key in (*path, *reversed(exc.path)))
    return exc.error(f"payload{place} {exc.reason}")


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind in _AS_IS:
        return value
    # Here and below subclasses too: bson's Int64, enumerations, numpy.float64 and numpy.str_.
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise _Unfit(OverflowError, f"is {int(value)}, which does not fit 64 bits")
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
        # A subclass, such as bson's Binary, says that it is something else.
        return text(bytes(value))
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain_numpy(value)
    raise _Unfit(TypeError, f"is {_type_name(value)}, which has no plain form")


def _plain_list(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    # Prices and volumes of a depth: a thousand of a kind.
    kinds = set(map(type, values))
    if kinds <= _AS_IS or (kinds == _INTS and min(values) >= _INT_MIN and max(values) <= _INT_MAX):
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
    # numpy.longdouble has no counterpart and returns itself; a record would lose the names of its fields.
    if type(converted) is type(value) or value.dtype.names is not None:
        raise _Unfit(TypeError, f"is {_type_name(value)} of {value.dtype}, which has no plain form")
    return _plain(converted)


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
