"""`/api/ticks/CODE` as Parquet, read by pyarrow, with a real server and a store that answers as the wire says."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import httpx2
import msgspec
import pytest

pyarrow = pytest.importorskip("pyarrow")
from pyarrow.parquet import ParquetFile  # noqa: E402

from gateway.http import ticks as page  # noqa: E402
from gateway.http.formats.parquet import GROUP_BYTES, Parquet, schema_of  # noqa: E402
from gateway.http.formats.records import Records  # noqa: E402
from gateway.http.ticks import CHUNK_OF, End  # noqa: E402
from qmt_bridge.wire.history import StoredFrame, TopicHistory  # noqa: E402
from qmt_bridge.wire.messages import view_of  # noqa: E402
from qmt_bridge.wire.positions import Position  # noqa: E402
from qmt_bridge.wire.topics import Kind, quote_topic  # noqa: E402
from tests.gateway.http.conftest import client_of  # noqa: E402
from tests.support.recorded import recorded, rows_by_code  # noqa: E402
from tests.support.rig import DEADLINE, Rig  # noqa: E402
from tests.support.shelf import EPOCH, OPEN_MS, Shelf  # noqa: E402

MAOTAI = "600519.SH"
TICK = quote_topic(MAOTAI)
PATH = f"/api/ticks/{MAOTAI}"


@pytest.fixture
async def pages(rig: Rig, shelf: Shelf) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of a gateway that knows the store."""
    async with client_of(rig.serve(store_addr=shelf.address)) as client:
        yield client


async def read(pages: httpx2.AsyncClient, **parameters: object) -> ParquetFile:
    response = await pages.get(PATH, params={"format": "parquet", **parameters})
    assert response.status_code == 200, response.text
    return ParquetFile(io.BytesIO(response.content))


def end_of(file: ParquetFile) -> End:
    return msgspec.json.decode(file.metadata.metadata[b"end"], type=End)


def tick(number: int) -> dict[str, Any]:
    levels = {"askPrice": [10.0 + level for level in range(5)], "bidPrice": [9.5, 9.0, 8.5, 8.0, 7.5]}
    volumes = {"askVol": [number, 2, 3, 4, 5], "bidVol": [5, 4, 3, 2, 1]}
    return {"time": OPEN_MS + 3000 * number, "lastPrice": 10.0 + number, "volume": number, **levels, **volumes}


def known(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


async def test_ticks_are_rows_with_typed_columns(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    stored = [tick(number) for number in range(5)]
    shelf.put(TICK, *stored)
    response = await pages.get(PATH, params={"format": "parquet"})
    assert response.headers["content-type"] == "application/vnd.apache.parquet"
    assert response.headers["content-disposition"] == 'attachment; filename="600519.SH-tick.parquet"'
    # It is compressed as it is.
    assert "content-encoding" not in response.headers
    file = ParquetFile(io.BytesIO(response.content))
    table = file.read()
    assert {str(field.type) for field in table.schema} == {
        "timestamp[ms, tz=Asia/Shanghai]", "int64", "double", "string", "list<element: double>", "list<element: int64>",
    }  # fmt: skip
    rows = [known(row) for row in table.to_pylist()]
    opened = datetime.fromtimestamp(OPEN_MS / 1000, UTC)
    assert rows[0]["time"] == opened
    assert [{**row, "time": int(row["time"].timestamp() * 1000)} for row in rows] == stored
    assert end_of(file) == End("end", 5, True, "09:30:00.000", Position(EPOCH, 5), [])


@pytest.mark.parametrize("period", ["tick", "1m", "l2quote", "l2order", "l2transaction", "l2orderqueue"])
async def test_columns_are_those_of_the_period_whatever_the_records(
    shelf: Shelf, pages: httpx2.AsyncClient, period: str
) -> None:
    shelf.put(quote_topic(MAOTAI, period), {"time": OPEN_MS, "news": "停牌"})
    view = view_of(Kind.QUOTE, period)
    assert view is not None
    names = [field.encode_name for field in msgspec.structs.fields(view)]
    file = await read(pages, period=period)
    assert file.schema_arrow.names == [*names, "other"]
    assert file.schema_arrow.equals(schema_of(period))
    [row] = file.read().to_pylist()
    assert row["other"] == '{"news":"停牌"}'
    # The same without any record.
    empty = await read(pages, period=period, start="14:00")
    assert (empty.schema_arrow, empty.metadata.num_rows) == (file.schema_arrow, 0)


async def test_value_that_fits_no_column_is_kept_as_text(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    odd = {"time": float(OPEN_MS), "volume": 12.0, "lastPrice": "n/a", "askVol": [1.0, None, 3.0], "amount": 2**60}
    other = {"volume": 12.5, "bidPrice": {"1": 2.0}, "open": True, "bidVol": [1, 2.5], "timetag": 5, "pvolume": 2**63}
    shelf.put(TICK, odd, {"time": None, "lastPrice": 3, **other}, {"volume": 7})
    first, second, third = map(known, (await read(pages)).read().to_pylist())
    assert (first["volume"], first["askVol"]) == (12, [1, None, 3])
    assert first["time"].timestamp() * 1000 == OPEN_MS
    assert json.loads(first["other"]) == {"lastPrice": "n/a", "amount": 2**60}
    assert second.keys() == {"lastPrice", "other"}
    assert json.loads(second["other"]) == other
    assert third == {"volume": 7}


async def test_bar_is_one_row_with_its_newest_state(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    bars = [{"time": OPEN_MS + minute, "close": close} for minute, close in ((0, 1.0), (0, 1.5), (60_000, 2.0))]
    shelf.put(quote_topic(MAOTAI, "1m"), *bars)
    file = await read(pages, period="1m")
    assert [row["close"] for row in file.read().to_pylist()] == [1.5, 2.0]
    assert end_of(file).records == 2


async def test_asked_fields_are_the_columns_in_their_order(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, tick(1) | {"news": 1})
    file = await read(pages, fields="volume,lastPrice,news")
    assert file.schema_arrow.names == ["volume", "lastPrice", "other"]
    assert file.read().to_pylist() == [{"volume": 1, "lastPrice": 11.0, "other": '{"news":1}'}]


async def test_row_groups_have_a_bound_in_bytes(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *({**tick(number), "timetag": f"{number:0800}"} for number in range(4000)))
    file = await read(pages)
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    assert file.read()["volume"].to_pylist() == list(range(4000))
    assert len(groups) > 4
    # Dictionaries and levels of Parquet take some percent more than the values in memory.
    assert max(group.total_byte_size for group in groups) < 1.1 * (GROUP_BYTES + CHUNK_OF["parquet"])
    assert min(group.total_byte_size for group in groups[:-1]) > GROUP_BYTES / 4


async def test_row_groups_are_sent_while_the_store_is_read(shelf: Shelf, pages: httpx2.AsyncClient) -> None:
    shelf.put(TICK, *({**tick(number), "timetag": f"{number:0800}"} for number in range(4000)))
    read_on = threading.Event()
    # The store waits in the middle until the client has the first row group.
    shelf.willing = lambda ask: len(shelf.asked) < 12 or read_on.wait(DEADLINE)
    data = b""
    async with pages.stream("GET", PATH, params={"format": "parquet"}) as response:
        async for part in response.aiter_bytes():
            data += part
            if len(data) > 1000:
                read_on.set()
    assert read_on.is_set()
    assert ParquetFile(io.BytesIO(data)).metadata.num_rows == 4000


async def test_what_is_missing_is_in_the_metadata(
    shelf: Shelf, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, *({**tick(number), "timetag": "x" * 900} for number in range(1000)))
    shelf.willing = lambda ask: len(shelf.asked) <= 3
    monkeypatch.setattr(page, "ANSWER_TIMEOUT", 1.0)
    file = await read(pages)
    end = end_of(file)
    assert 0 < file.metadata.num_rows == end.records < 1000
    assert (end.complete, [gap.reason for gap in end.missing]) == (False, ["store_away"])


async def test_row_group_is_packed_beside_the_event_loop(
    shelf: Shelf, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, *(tick(number) for number in range(1000)))
    threads: dict[str, set[int]] = {"add": set(), "pack": set()}
    for name, noted in threads.items():
        plain = getattr(Parquet, name)

        def noting(self: Parquet, *given: Any, plain: Any = plain, noted: set[int] = noted) -> bytes:
            noted.add(threading.get_ident())
            return plain(self, *given)  # type: ignore[no-any-return]

        monkeypatch.setattr(Parquet, name, noting)
    assert (await read(pages)).metadata.num_rows == 1000
    assert len(threads["add"]) == 1
    assert threads["pack"]
    assert threads["add"].isdisjoint(threads["pack"])


async def test_without_pyarrow_the_extra_is_named(
    shelf: Shelf, pages: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.put(TICK, tick(1))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "gateway.http.formats.parquet")
    response = await pages.get(PATH, params={"format": "parquet"})
    assert (response.status_code, response.json()["code"]) == (501, "bad_request")
    assert "pip install 'qmt-bridge-gateway[parquet]'" in response.json()["error"]
    assert shelf.asked == []
    assert (await pages.get(PATH)).status_code == 200


@recorded
def test_recorded_ticks_fit_their_columns() -> None:
    for code, rows in islice(rows_by_code().items(), 5):
        topic = quote_topic(code)
        made = Parquet(Records(topic, "tick", ()), "tick", ())
        frames = [
            StoredFrame(EPOCH, seq, 1, 1, msgspec.Raw(msgspec.json.encode({code: [row]})))
            for seq, row in enumerate(rows, 1)
        ]
        made.add(TopicHistory(1, topic, frames=frames))
        made.end(End("end", made.total, True, None, None, []))
        table = pyarrow.parquet.read_table(io.BytesIO(made.pack()))
        assert table["other"].null_count == len(rows)
        shown = table.drop_columns("time").to_pylist()
        assert list(map(known, shown)) == [{name: row[name] for name in row if name != "time"} for row in rows]
