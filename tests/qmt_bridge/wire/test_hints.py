"""What a name may have been meant to be, and what of a request means nothing."""

from __future__ import annotations

import pytest

from qmt_bridge.errors import BadRequest
from qmt_bridge.wire.hints import did_you_mean, similar
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.requests import (
    IGNORED_NAMES,
    DownloadStart,
    FormulaRequest,
    FormulaUnsubscribe,
    L2Request,
    QuoteRequest,
    WholeRequest,
    ignored_fields,
    ignored_parameters,
    read_request,
)
from qmt_bridge.wire.topics import PERIODS, Kind, check_period


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("fileds", ["fields", "period"], "fields"),
        ("maxRateMs", ["max_rate_ms", "mode"], "max_rate_ms"),
        ("MODE", ["mode"], "mode"),
        ("price", known_fields(Kind.QUOTE, "tick"), "lastPrice"),
        ("last_price", known_fields(Kind.WHOLE, ""), "lastPrice"),
        ("bidLevelVolumes", known_fields(Kind.QUOTE, "l2orderqueue"), "bidLevelVolume"),
        ("avgBid", known_fields(Kind.QUOTE, "l2quoteaux"), "avgBidPrice"),
        ("1D", PERIODS, "1d"),
        ("1min", PERIODS, "1m"),
    ],
)
def test_similar_name_is_found(name, known, found):
    assert found in similar(name, known)
    assert found in did_you_mean(name, known)


@pytest.mark.parametrize("name", ["", "zzz", "价格", "x" * 50_000])
def test_nothing_similar_is_no_hint(name):
    assert did_you_mean(name, ["fields", "period"]) == ""


@pytest.mark.parametrize(
    ("request_", "shape"),
    [
        ({"stocks": ["000001.SZ"], "period": "tick"}, QuoteRequest),
        ({"codes": ["SH", "SZ"]}, WholeRequest),
        ({"stocks": ["000001.SZ"], "gear_num": 20}, L2Request),
        ({"stocks": ["000001.SZ"], "period": "1d", "start_time": "", "end_time": ""}, DownloadStart),
        (
            {
                "action": "subscribe",
                "formula_name": "MA",
                "stock_code": "000001.SZ",
                "period": "1d",
                "count": -1,
                "dividend_type": "none",
                "params": {},
            },
            FormulaRequest,
        ),
        ({"action": "unsubscribe", "seq_id": 123}, FormulaUnsubscribe),
    ],
)
def test_requests_of_the_guide_have_nothing_that_is_ignored(request_, shape):
    assert ignored_fields(request_, shape) == []


@pytest.mark.parametrize(
    ("name", "shape", "hint"),
    [
        ("fileds", QuoteRequest, "did you mean fields"),
        ("count", QuoteRequest, "a field of /ws/formula"),
        ("start_time", QuoteRequest, "a field of /ws/download_progress"),
        ("gear_num", QuoteRequest, "a field of /ws/l2_thousand"),
        ("dividend_type", WholeRequest, "a field of /ws/formula"),
        ("codes", QuoteRequest, "a field of /ws/whole_quote; here it is stocks"),
        ("stocks", WholeRequest, "here it is codes"),
        ("symbols", WholeRequest, "did you mean codes"),
        ("symbol", FormulaRequest, "did you mean stock_code"),
        ("max_rate", L2Request, "did you mean max_rate_ms"),
        ("zzz", DownloadStart, "known here: stocks, period, start_time, end_time"),
        ("stocks", None, "no other field than id"),
    ],
)
def test_name_that_means_nothing_has_a_hint(name, shape, hint):
    [ignored] = ignored_fields({"id": 1, "action": "x", name: 1}, shape)
    assert ignored.field == name
    assert hint in ignored.hint


def test_the_list_of_unknown_names_in_an_error_is_short():
    ignored = ignored_fields({f"{number}" * 100: 1 for number in range(1000)}, QuoteRequest)
    assert len(ignored) == IGNORED_NAMES
    assert all(len(name) <= 40 for name, _ in ignored)
    assert len(ignored_parameters([(f"p{number}", "") for number in range(1000)], ["ctl"])) == IGNORED_NAMES


def test_parameters_of_a_url_are_named_without_their_values():
    given = [("apikey", "secret"), ("afer", "8"), ("ctl", "true"), ("api_key", "secret"), ("ctl", "1")]
    ignored = ignored_parameters(given, ["api_key", "ctl", "after"])
    assert ignored == [
        ("apikey", "did you mean api_key"),
        ("afer", "did you mean after"),
        ("ctl", "ctl=1 opts in"),
    ]


@pytest.mark.parametrize(
    ("request_", "shape", "said"),
    [
        ({"stocks": ["x"], "mode": "al"}, QuoteRequest, "mode must be one of latest, all, not 'al'; did you mean all"),
        ({"stocks": ["x"], "mode": 7}, L2Request, "mode must be one of latest, all, not a number"),
        ({"stocks": ["SH"]}, WholeRequest, "codes must be a non-empty list of codes; 'stocks' is not known here"),
        ({"codes": ["600519.SH"]}, QuoteRequest, "here it is stocks"),
        ({"stock": ["600519.SH"]}, DownloadStart, "did you mean stocks"),
        ({"name": "MA", "stock_code": "x"}, FormulaRequest, "did you mean formula_name"),
        ({"seqid": 1}, FormulaUnsubscribe, "did you mean seq_id"),
    ],
)
def test_an_error_lists_the_allowed_values_and_the_wrong_one(request_, shape, said):
    with pytest.raises(BadRequest) as caught:
        read_request(request_, shape)
    assert said in caught.value.reason


@pytest.mark.parametrize(("period", "said"), [("1min", "did you mean"), ("day", "expected one of tick, 1m")])
def test_unknown_period_has_a_hint_and_the_list(period, said):
    with pytest.raises(BadRequest, match=said):
        check_period(period)


@pytest.mark.parametrize("period", ["announcement", "l2transactioncount", "snapshotindex"])
def test_nothing_is_claimed_of_records_that_no_view_describes(period):
    assert known_fields(Kind.QUOTE, period) == frozenset()
