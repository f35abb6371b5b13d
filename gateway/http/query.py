"""The parameters of a URL as the same shapes that requests on a WebSocket have. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import msgspec
import orjson

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.hints import NAME_CHARACTERS
from qmt_bridge.wire.requests import ignored_parameters, read_request

# Every URL takes the key as a parameter, for programs that cannot set a header.
KEY = "api_key"
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Shape = TypeVar("Shape", bound=msgspec.Struct)


def read_query(query: bytes, shape: type[Shape], also: Iterable[str] = ()) -> Shape:
    """Return the parameters as `shape`; raise `BadRequest` for one that is unknown, given twice, or of a wrong form.

    `also` are parameters that another part reads.
    """
    return read_request(values_of(query, shape, also), shape)


def values_of(query: bytes, shape: type[msgspec.Struct], also: Iterable[str] = ()) -> dict[str, Any]:
    """Return the parameters as the fields of a request, each of the type that `shape` has for it if it can be.

    A list is separated by commas, or its parameter comes several times; an object is JSON.
    """
    kinds = _kinds(shape)
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("bad_request", "the parameters are not UTF-8") from None
    others = {KEY, *also}
    for name, hint in ignored_parameters(given, (*kinds, *others)):
        raise BadRequest("bad_request", f"the parameter {name!r} means nothing here; {hint}")
    values: dict[str, Any] = {}
    for name, text in given:
        if name in others:
            continue
        if list in kinds[name]:
            values.setdefault(name, []).extend(part for each in text.split(",") if (part := each.strip()))
        elif name in values:
            raise BadRequest("bad_request", f"{name} is given twice")
        elif text:
            values[name] = _value(name, text, kinds[name])
    return values


def _value(name: str, text: str, kinds: frozenset[object]) -> object:
    if bool in kinds:
        if text.lower() not in _BOOLEANS:
            raise BadRequest("bad_request", f"{name} is true or false, not {text[:NAME_CHARACTERS]!r}")
        return _BOOLEANS[text.lower()]
    if int in kinds and _INTEGER.fullmatch(text):
        return int(text)
    if int in kinds and str not in kinds:
        raise BadRequest("bad_request", f"{name} is a whole number, not {text[:NAME_CHARACTERS]!r}")
    if float in kinds:
        try:
            return float(text)
        except ValueError:
            raise BadRequest("bad_request", f"{name} is a number, not {text[:NAME_CHARACTERS]!r}") from None
    if dict in kinds and (text.startswith("{") or str not in kinds):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            raise BadRequest("bad_request", f"{name} is an object as JSON, not {text[:NAME_CHARACTERS]!r}") from None
    # The plus of an ISO time's offset is a space in a URL.
    return text.replace(" ", "+") if int in kinds and "T" in text else text


@cache
def _kinds(shape: type[msgspec.Struct]) -> dict[str, frozenset[object]]:
    """Return the plain types that each field may have."""
    return {name: frozenset(_plain(hint)) for name, hint in get_type_hints(shape, include_extras=True).items()}


def _plain(hint: Any) -> Iterable[object]:
    origin = get_origin(hint)
    if origin is Annotated:
        yield from _plain(get_args(hint)[0])
    elif origin in (Union, UnionType):
        for each in get_args(hint):
            yield from _plain(each)
    else:
        yield hint if origin is None else origin
