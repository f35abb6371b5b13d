"""Frames and records as a table of pandas or Polars: one row a record. Pure.

Neither library is needed by the rest of qmt_bridge; each is imported when a table is made (extras `pandas`, `polars`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

Library = Literal["pandas", "polars"]
Lists = Literal["columns", "lists"]

# A list with more entries stays a list unless columns are asked for: depth has up to a thousand levels.
_MOST_COLUMNS = 10
# Fields with a time, and how many of them a second has.
_TIMES = {"time": 1000, "timeTag": 1000, "order_time": 1, "traded_time": 1}
# The last millisecond that a time of pandas may have, in the year 2262; what is behind is no time.
_LAST_MS = (2**63 - 1) // 1_000_000


def to_df(frames: object, library: Library | None = None, *, lists: Lists | None = None) -> Any:
    """Return frames of a client as a DataFrame.

    `frames` is one frame or any number of them, of one stream: quotes, markets, depth, formula values, trade events,
    progress, plain or typed (``typed=True``), or the answer of ``client.last(codes, library="records")``.

    - One row a record, in the order of the frames; the column `code` is the first one. A trade event has `type` and
      `seq` before the fields of its `data`, a formula one row for each bar, with a column for each output.
    - A time stays the number that it was; beside `time` (ms) there is `datetime`, beside another one such as
      `traded_time` (s) there is `traded_time_datetime`, in the zone Asia/Shanghai.
    - A list of up to ten entries has a column for each, from the best level on: `askPrice1` to `askPrice5`. A longer
      one stays a list. ``lists="lists"`` keeps every list, ``lists="columns"`` none.
    - What a record lacks is null, and so is what JSON has no number for.

    `library` is "pandas" or "polars"; without it pandas, if that is installed. Raises ImportError, which names the
    extra to install, without any.
    """
    return _table(list(_rows(frames)), library, lists)


def records_to_df(
    code: str, records: Iterable[Mapping[str, Any]], library: Library | None = None, *, lists: Lists | None = None
) -> Any:
    """Return the records of one code as a DataFrame, as `to_df` does."""
    return _table([{"code": code, **record} for record in records], library, lists)


def last_to_df(answer: Mapping[str, Any], library: Library | None = None, *, lists: Lists | None = None) -> Any:
    """Return the answer of /api/last as a DataFrame: a row for each code, with the column `missing` at the end.

    It says why a code has no record, and is null where it has one.
    """
    return _table(list(_last(answer)), library, lists, ends=("missing",))


def _rows(frames: object) -> Iterator[dict[str, Any]]:
    if isinstance(frames, Mapping | msgspec.Struct):
        frames = (frames,)
    if not isinstance(frames, Iterable) or isinstance(frames, str | bytes):
        raise TypeError(f"frames must be a frame or some of them, not {type(frames).__name__}")
    for frame in frames:
        yield from _frame_rows(_plain(frame))


def _frame_rows(frame: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if "records" in frame and "feed" in frame:
        yield from _last(frame)
    elif "timelist" in (data := frame.get("data") or {}):
        yield from _formula(frame, data)
    elif "type" in frame and isinstance(data, Mapping):
        head = {name: value for name, value in frame.items() if name != "data"}
        yield {**head, **data, **head}
    elif all("." in name for name in frame):
        for code, value in frame.items():
            for record in value if isinstance(value, Sequence) else (value,):
                yield {"code": code, **(record or {})}
    else:
        yield dict(frame)


def _last(answer: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    missing = answer.get("missing") or {}
    for code, record in answer["records"].items():
        reason = missing.get(code)
        yield {"code": code, **(record or {}), "missing": None if reason is None else reason.get("code")}


def _formula(frame: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    outputs = data.get("outputs") or {}
    for place, time in enumerate(data["timelist"] or ()):
        values = {name: of[place] if place < len(of) else None for name, of in outputs.items()}
        yield {"code": frame.get("stock_code"), "formula_name": frame.get("formula_name"), "time": time, **values}


def _plain(frame: Any) -> Any:
    """Return a typed frame as the frame that it was read from; None for what that has not told."""
    return msgspec.to_builtins(frame)


def _table(rows: list[dict[str, Any]], library: Library | None, lists: Lists | None, ends: Sequence[str] = ()) -> Any:
    found = _library(library)
    columns = _columns(rows, lists)
    for name in ends:
        columns[name] = columns.pop(name, [None] * len(rows))
    return _polars(columns) if found == "polars" else _pandas(columns)


def _columns(rows: list[dict[str, Any]], lists: Lists | None) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        values = [row.get(name) for row in rows]
        longest = max((len(value) for value in values if isinstance(value, list | tuple)), default=0)
        is_split = lists != "lists" and longest and (lists == "columns" or longest <= _MOST_COLUMNS)
        # A field of such a name would be lost.
        if is_split and not any(f"{name}{place + 1}" in names for place in range(longest)):
            for place in range(longest):
                columns[f"{name}{place + 1}"] = [_entry(value, place) for value in values]
        elif longest or any(value == [] for value in values):
            columns[name] = [list(value) if isinstance(value, list | tuple) else None for value in values]
        else:
            columns[name] = values
    return columns


def _entry(value: Any, place: int) -> Any:
    """Return one entry of a list; a value that is no list is its first one."""
    if isinstance(value, list | tuple):
        return value[place] if place < len(value) else None
    return value if place == 0 else None


def _moments(columns: dict[str, list[Any]]) -> Iterator[tuple[str, str, list[int | None]]]:
    """Yield the columns with a time: their name, that of the column beside it, and its values in ms."""
    for name, a_second in _TIMES.items():
        beside = "datetime" if name == "time" else f"{name}_datetime"
        if name not in columns or beside in columns:
            continue
        values = [_moment(value, a_second) for value in columns[name]]
        if any(value is not None for value in values):
            yield name, beside, values


def _moment(value: Any, a_second: int) -> int | None:
    """Return a time in ms since 1970; None for what is no number, or none that can be a time."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    # NaN is not less either.
    return round(value * 1000 / a_second) if abs(value) <= _LAST_MS * a_second / 1000 else None


def _library(library: Library | None) -> Library:
    if library not in (None, "pandas", "polars"):
        raise ValueError(f"library must be 'pandas' or 'polars', not {library!r}")
    wanted: tuple[Library, ...] = ("pandas", "polars") if library is None else (library,)
    for name in wanted:
        if importlib.util.find_spec(name) is not None:
            return name
    names = " or ".join(wanted)
    raise ImportError(f"a table needs {names}: pip install 'qmt-bridge-gateway[{wanted[0]}]'")


def _pandas(columns: dict[str, list[Any]]) -> Any:
    import pandas

    table = pandas.DataFrame(columns)
    for name, beside, values in list(_moments(columns)):
        moments = pandas.to_datetime(pandas.Series(values, dtype="Int64"), unit="ms", utc=True)
        table.insert(table.columns.get_loc(name) + 1, beside, moments.dt.tz_convert("Asia/Shanghai"))
    return table


def _polars(columns: dict[str, list[Any]]) -> Any:
    import polars

    table = polars.DataFrame(
        [polars.Series(name, values, strict=False) for name, values in columns.items()],
    )
    for name, beside, values in list(_moments(columns)):
        moments = polars.Series(beside, values, dtype=polars.Int64).cast(polars.Datetime("ms", "UTC"))
        table.insert_column(table.get_column_index(name) + 1, moments.dt.convert_time_zone("Asia/Shanghai"))
    return table
