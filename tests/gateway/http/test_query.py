"""The parameters of a URL as fields of a request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.http.query import read_query, values_of
from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.requests import FormulaRequest, L2Request, QuoteRequest


class Shape(msgspec.Struct):
    """Every kind of field."""

    codes: list[object] = []
    when: int | str | dict[str, Any] | None = None
    few: bool = False
    count: int = 0
    pace: float = 0


def test_values_have_the_types_of_the_fields() -> None:
    found = read_query(b"stocks=600519.SH,000001.SZ&stocks=+000002.SZ+,&gear_num=5&snapshot=False&seq=1", L2Request)
    assert found == L2Request(["600519.SH", "000001.SZ", "000002.SZ"], 5, snapshot=False, seq=True)
    formula = read_query(b"formula_name=%E5%9D%87%E7%BA%BF&stock_code=600519.SH&params={%22N%22:5}", FormulaRequest)
    assert (formula.formula_name, formula.params) == ("均线", {"N": 5})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"when=09:30:00", "09:30:00"),
        (b"when=1795743000000", 1795743000000),
        (b"when={%22seq%22:5}", {"seq": 5}),
        # The plus of the offset, which is a space in a URL, is put back.
        (b"when=2026-11-27T09:30:00+08:00", "2026-11-27T09:30:00+08:00"),
        (b"when=2026-11-27+09:30", "2026-11-27 09:30"),
    ],
)
def test_moment_is_a_text_a_number_or_an_object(text: bytes, value: object) -> None:
    assert values_of(text, Shape) == {"when": value}


@pytest.mark.parametrize(("text", "value"), [(b"pace=10", 10.0), (b"pace=.5", 0.5), (b"pace=1e3", 1000.0)])
def test_number_with_a_fraction_is_one(text: bytes, value: float) -> None:
    assert values_of(text, Shape) == {"pace": value}


def test_blank_parameter_is_left_at_its_default_and_the_key_is_no_field() -> None:
    assert values_of(b"few=&count=&codes=&api_key=secret&cursor=1", Shape, ("cursor",)) == {"codes": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"cuont=1", "the parameter 'cuont' means nothing here; did you mean count"),
        (b"count=1&count=1", "count is given twice"),
        (b"count=1.5", "count is a whole number, not '1.5'"),
        (b"count=" + b"1" * 30, "count is a whole number"),
        (b"pace=fast", "pace is a number, not 'fast'"),
        (b"few=yes", "few is true or false, not 'yes'"),
        (b"when={", "when is an object as JSON, not '{'"),
        (b"few=%fe", "the parameters are not UTF-8"),
    ],
)
def test_wrong_parameter_is_named_in_words(text: bytes, words: str) -> None:
    with pytest.raises(BadRequest, match=words.replace("{", r"\{")):
        values_of(text, Shape)


def test_missing_field_is_named() -> None:
    with pytest.raises(BadRequest, match="stocks must be a non-empty list of codes"):
        read_query(b"period=1m", QuoteRequest)
