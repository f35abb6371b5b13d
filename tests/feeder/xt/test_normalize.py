from __future__ import annotations

import datetime
import decimal
import enum
import math
import subprocess
import sys
import types
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from fractions import Fraction

import msgspec
import numpy as np
import pytest

from feeder.xt import normalize
from qmt_bridge.wire import frames
from tests.support.paths import ROOT
from tests.support.waiting import SLOWNESS


class Int64(int):
    """The type that bson's decoder returns for 64-bit integers."""


class Binary(bytes):
    """The type that bson's decoder returns for bytes of a special kind, such as a UUID."""


class Side(enum.IntEnum):
    BUY = 23


class Phase(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum is its value anyway
    OPEN = "open"


class ReadOnly(Mapping[str, object]):
    def __getitem__(self, key: str) -> object:
        return {"a": 1}[key]

    def __iter__(self):
        return iter(("a",))

    def __len__(self) -> int:
        return 1


Level = namedtuple("Level", "price volume")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(Int64(1733118954000), 1733118954000, id="int64"),
        pytest.param(Side.BUY, 23, id="int-enum"),
        pytest.param(Phase.OPEN, "open", id="str-enum"),
        pytest.param(np.int64(5), 5, id="numpy-int"),
        pytest.param(np.uint64(2**64 - 1), 2**64 - 1, id="numpy-uint64"),
        pytest.param(np.float64(1.5), 1.5, id="numpy-float64"),
        pytest.param(np.float32(0.5), 0.5, id="numpy-float32"),
        pytest.param(np.bool_(True), True, id="numpy-bool"),
        pytest.param(np.str_("SH"), "SH", id="numpy-str"),
        pytest.param(np.array([[1.5, 2.0], [3.0, 4.0]]), [[1.5, 2.0], [3.0, 4.0]], id="numpy-matrix"),
        pytest.param(np.array(7), 7, id="numpy-scalar-array"),
        pytest.param(np.array([Int64(1), "x"], dtype=object), [1, "x"], id="numpy-objects"),
        pytest.param((1, (2.5, None)), [1, [2.5, None]], id="tuples"),
        pytest.param(Level(1.5, 2), [1.5, 2], id="named-tuple"),
        pytest.param(OrderedDict(a=Int64(1)), {"a": 1}, id="ordered-dict"),
        pytest.param(ReadOnly(), {"a": 1}, id="mapping"),
        pytest.param({1: "a", Int64(2): "b", np.int32(3): "c"}, {"1": "a", "2": "b", "3": "c"}, id="int-keys"),
        pytest.param({Phase.OPEN: 1}, {"open": 1}, id="enum-key"),
        pytest.param(-(2**63), -(2**63), id="smallest"),
        pytest.param(2**64 - 1, 2**64 - 1, id="largest"),
        pytest.param("股票", "股票", id="text"),
        pytest.param({}, {}, id="empty"),
    ],
)
def test_a_value_becomes_plain_without_loss(value: object, expected: object) -> None:
    result = normalize.plain({"x": [value]})["x"][0]
    assert result == expected
    assert _types(result) <= {dict, list, str, int, float, bool, types.NoneType}
    # An encoder without a hook can encode it.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(result)) == expected


def test_nan_and_infinity_are_kept() -> None:
    nan, infinity, from_numpy = normalize.plain([float("nan"), -math.inf, np.float64("nan")])
    assert math.isnan(nan)
    assert infinity == -math.inf
    assert math.isnan(from_numpy)
    assert type(from_numpy) is float


def test_floats_are_not_rounded() -> None:
    assert normalize.plain({"bidPrice": [11.370000000000001]}) == {"bidPrice": [11.370000000000001]}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        pytest.param(Binary(b"\0"), "Binary", id="binary"),
        pytest.param(datetime.datetime(2025, 1, 2), "datetime.datetime", id="datetime"),
        pytest.param(datetime.date(2025, 1, 2), "datetime.date", id="date"),
        pytest.param(decimal.Decimal("1.1"), "decimal.Decimal", id="decimal"),
        pytest.param(Fraction(1, 3), "fractions.Fraction", id="fraction"),
        pytest.param({1, 2}, "set", id="set"),
        pytest.param(1j, "complex", id="complex"),
        pytest.param(object(), "object", id="object"),
        pytest.param(np.longdouble(1.5), "numpy", id="numpy-longdouble"),
        pytest.param(np.datetime64("2025-01-02"), "datetime", id="numpy-datetime"),
        pytest.param(np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "numpy.ndarray of", id="numpy-record"),
    ],
)
def test_a_value_without_a_plain_form_is_named_with_its_place(value: object, named: str) -> None:
    with pytest.raises(TypeError) as error:
        normalize.plain({"600519.SH": [{"time": 1}, {"x": value}]})
    assert "payload['600519.SH'][1]['x']" in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, Int64(2**64)])
def test_an_integer_beyond_64_bits_stays_exact(value: int) -> None:
    assert frames.encode(normalize.plain({"a": [value]})) == b'{"a":[%d]}' % int(value)


@pytest.mark.parametrize("key", [None, 1.5, True, (1, 2)])
def test_a_key_that_is_neither_text_nor_integer_is_an_error(key: object) -> None:
    with pytest.raises(TypeError, match=r"^payload\['a'\]"):
        normalize.plain({"a": {key: 1}})


def test_two_keys_of_the_same_text_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^payload\['a'\] has two keys of the same text"):
        normalize.plain({"a": {1: "x", "1": "y"}})


def quote(payload: object) -> tuple[dict, list[str]]:
    """Return the body of a quote, and the reports of what was left out of it."""
    unfit: list[Exception] = []
    return normalize.quote(payload, unfit.append), [f"{type(exc).__name__}: {exc}" for exc in unfit]


def whole(payload: object) -> tuple[list[dict], list[str]]:
    unfit: list[Exception] = []
    return list(normalize.whole(payload, unfit.append)), [f"{type(exc).__name__}: {exc}" for exc in unfit]


def test_a_quote_keeps_every_record_and_every_field() -> None:
    payload = {"600519.SH": [{"time": Int64(1), "foo": 1.25, "汉字": "x"}, {"time": Int64(2)}]}
    assert quote(payload) == ({"600519.SH": [{"time": 1, "foo": 1.25, "汉字": "x"}, {"time": 2}]}, [])


def test_a_bare_quote_record_becomes_a_list_of_one() -> None:
    assert quote({"600519.SH": {"time": 1}}) == ({"600519.SH": [{"time": 1}]}, [])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        pytest.param(b"\5\0\0\0\0", "payload must be a map, not bytes", id="undecoded"),
        pytest.param([{"time": 1}], "payload must be a map, not list", id="list"),
        pytest.param(None, "payload must be a map, not NoneType", id="none"),
    ],
)
@pytest.mark.parametrize("shape", [quote, whole, normalize.document])
def test_a_payload_that_is_not_a_map_is_an_error(shape, payload: object, message: str) -> None:
    with pytest.raises(TypeError) as error:
        shape(payload)
    assert str(error.value) == message


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


class Broken(ReadOnly):
    def __iter__(self):
        raise RuntimeError("no keys today")


@pytest.mark.parametrize(
    ("unfit", "named"),
    [
        pytest.param({"x": 1j}, "TypeError: payload['B']['x'] is complex, which has no plain form", id="complex"),
        pytest.param([{"x": 1j}], "TypeError: payload['B'][0]['x'] is complex, which", id="in-a-list"),
        pytest.param("x", "TypeError: payload['B'] must be a record, not str", id="text"),
        pytest.param([1.5], "TypeError: payload['B'][0] must be a record, not float", id="number-in-a-list"),
        pytest.param([[1]], "TypeError: payload['B'][0] must be a record, not list", id="list-in-a-list"),
        pytest.param({"x": deep(5000)}, "RecursionError: ", id="deep"),
        pytest.param(Broken(), "RuntimeError: no keys today", id="broken"),
    ],
)
def test_an_unfit_value_drops_only_its_own_code(unfit: object, named: str) -> None:
    payload = {"A": {"time": 1}, "B": unfit, "C": {"time": 3}}
    body, said = quote(payload)
    assert body == {"A": [{"time": 1}], "C": [{"time": 3}]}
    assert [one.startswith(named) for one in said] == [True], said
    batches, said = whole(payload)
    assert batches == [{"A": {"time": 1}, "C": {"time": 3}}]
    assert [one.startswith(named) for one in said] == [True], said


def test_an_unfit_record_drops_no_other_record_of_its_code() -> None:
    said = ["TypeError: payload['A'][1]['x'] is complex, which has no plain form"]
    payload = {"A": [{"time": 1}, {"x": 1j}, {"time": 3}], "B": {"time": 2}}
    assert quote(payload) == ({"A": [{"time": 1}, {"time": 3}], "B": [{"time": 2}]}, said)
    assert whole(payload) == ([{"A": {"time": 1}, "B": {"time": 2}}, {"A": {"time": 3}}], said)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        pytest.param(1.5, "TypeError: payload has the key 1.5, and float cannot be a key", id="no-text"),
        pytest.param(1, "ValueError: payload has two keys of the same text '1'", id="twice"),
    ],
)
def test_an_invalid_code_drops_only_itself(key: object, said: str) -> None:
    assert quote({"1": {"time": 1}, key: {"time": 2}, "B": {"time": 3}}) == (
        {"1": [{"time": 1}], "B": [{"time": 3}]},
        [said],
    )


def test_a_whole_quote_passes_as_one_batch() -> None:
    payload = {"600519.SH": {"time": Int64(1)}, "000001.SZ": {"time": Int64(2)}}
    assert whole(payload) == ([{"600519.SH": {"time": 1}, "000001.SZ": {"time": 2}}], [])


def test_a_whole_quote_with_lists_keeps_each_tick_in_order() -> None:
    payload = {"A": [{"time": 1}, {"time": 3}], "B": {"time": 9}, "C": [{"time": 5}], "D": []}
    assert whole(payload) == (
        [{"A": {"time": 1}, "B": {"time": 9}, "C": {"time": 5}}, {"A": {"time": 3}}],
        [],
    )


@pytest.mark.parametrize("payload", [{}, {"A": []}])
def test_a_payload_without_records_has_no_body(payload: object) -> None:
    assert quote(payload) == ({}, [])
    assert whole(payload) == ([], [])


def test_a_formula_document_passes_unchanged() -> None:
    document = {"dbt": Int64(0), "timelist": [Int64(1733118954000)], "outputs": {"ma": [1.5, float("nan")]}}
    converted = normalize.document(document)
    assert frames.encode(converted) == b'{"dbt":0,"timelist":[1733118954000],"outputs":{"ma":[1.5,null]}}'


def test_normalize_imports_neither_xtquant_nor_numpy() -> None:
    code = "import sys, feeder.xt.normalize; sys.exit(bool({'xtquant', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30 * SLOWNESS).returncode == 0


def _types(value: object) -> set[type]:
    inner: list[object] = []
    if isinstance(value, dict):
        inner = [*value.keys(), *value.values()]
    elif isinstance(value, list):
        inner = value
    return {type(value)}.union(*(_types(item) for item in inner))


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "gb18030"])
@pytest.mark.parametrize("written", ["", "ok", "废单", "浣", "联通", "A股", "资金不足[251005]", "订单驳回:价格错误"])
def test_text_is_decoded_from_the_encodings_of_brokers(written: str, encoding: str) -> None:
    assert normalize.text(written.encode(encoding)) == written
    assert normalize.text(written.encode(encoding) + b"\0\0") == written
    assert normalize.text(written) == written


@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
def test_text_before_a_cut_is_decoded(encoding: str) -> None:
    written = "可用资金不足[251005]，委托失败"
    whole = written.encode(encoding)
    for length in range(4, len(whole)):
        read = normalize.text(whole[:length])
        assert written.startswith(read)
        assert len(read.encode(encoding)) > length - len("可".encode(encoding))


def test_a_character_of_four_bytes_may_be_cut_anywhere() -> None:
    for encoding in ("utf-8", "gb18030"):
        whole = "废单𠮷".encode(encoding)
        assert [normalize.text(whole[: len(whole) - cut]) for cut in range(4)] == ["废单𠮷", "废单", "废单", "废单"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param(b"\xff\xff", "\ufffd\ufffd", id="neither"),
        pytest.param("废单".encode("gbk") + b"\xff", "废单\ufffd", id="gbk-and-more"),
        pytest.param("资金".encode() + b"\xff", "资金\ufffd", id="utf-8-and-more"),
        pytest.param("资金".encode()[:-1] + "不足".encode(), "资\ufffd不足", id="utf-8-cut-within"),
        pytest.param("a\ud800b", "a\ufffd\ufffd\ufffdb", id="surrogate"),
        pytest.param("资金".encode() + b"\0\xcd\xcd", "资金", id="utf-8-and-what-was-there"),
        pytest.param("资金".encode("gbk") + b"\0\0old", "资金", id="gbk-and-what-was-there"),
        pytest.param("资金\0old", "资金", id="read-with-what-was-there"),
    ],
)
def test_undecodable_bytes_are_replaced_and_the_rest_is_decoded(written: bytes | str, read: str) -> None:
    assert normalize.text(written) == read


def test_bytes_in_a_payload_are_decoded_as_text() -> None:
    name = "贵州茅台"
    payload = {b"600519.SH": {"name": name.encode("gbk"), "list": [bytearray(name.encode())]}}
    assert quote(payload) == ({"600519.SH": [{"name": name, "list": [name]}]}, [])
