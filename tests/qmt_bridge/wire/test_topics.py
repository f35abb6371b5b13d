"""Topic names: built, parsed, and what a subscription asks for."""

from __future__ import annotations

from urllib.parse import quote

import msgspec
import pytest

from qmt_bridge.errors import BadRequest, WireError
from qmt_bridge.wire import topics
from qmt_bridge.wire.codes import MARKETS
from qmt_bridge.wire.topics import FormulaSpec, Kind, TopicParts


@pytest.mark.parametrize(
    ("topic", "text", "parts"),
    [
        (topics.quote_topic("600519.SH"), "quote/600519.SH/tick/", TopicParts(Kind.QUOTE, "600519.SH", "tick")),
        (topics.quote_topic("IF00.IF", "1mon"), "quote/IF00.IF/1mon/", TopicParts(Kind.QUOTE, "IF00.IF", "1mon")),
        (topics.whole_topic("SH"), "whole/SH/", TopicParts(Kind.WHOLE, "SH", "")),
        (topics.whole_topic("000001.SZ"), "whole/000001.SZ/", TopicParts(Kind.WHOLE, "000001.SZ", "")),
        (topics.l2_topic("000001.SZ"), "l2/000001.SZ/0/", TopicParts(Kind.L2, "000001.SZ", "0")),
        (topics.download_topic("ab12-1"), "download/ab12-1/", TopicParts(Kind.DOWNLOAD, "ab12-1", "")),
        (topics.trade_topic("a/b 1"), "trade/a%2Fb%201/", TopicParts(Kind.TRADE, "a/b 1", "")),
        (
            topics.quote_topic("SP a2501&a2505.DF"),
            "quote/SP a2501&a2505.DF/tick/",
            TopicParts(Kind.QUOTE, "SP a2501&a2505.DF", "tick"),
        ),
        (topics.STATUS_TOPIC, "status/feeder/", TopicParts(Kind.STATUS, "feeder", "")),
    ],
)
def test_topic_is_parsed_as_it_was_built(topic: str, text: str, parts: TopicParts) -> None:
    assert topic == text
    assert topics.parse_topic(topic) == parts


@pytest.mark.parametrize(
    "text", ["", "quote/", "quote/600519.SH/tick", "quote/600519.SH/", "whole//", "x/y/", "whole/SH/x/"]
)
def test_text_that_is_no_whole_topic_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        topics.parse_topic(text)


def test_no_topic_is_the_prefix_of_another() -> None:
    names = [topics.whole_topic(market) for market in MARKETS]
    names += [topics.quote_topic("600519.SH", period) for period in topics.PERIODS]
    names += [topics.l2_topic("600519.SH", gear_num) for gear_num in (0, 1, 10, 100)]
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(a)]


@pytest.mark.parametrize(
    "text", ["quote/", "trade/1/", "download/x/", "status/feeder/", "nonsense", "quote/600519.SH/tick"]
)
def test_prefixes_and_undemanded_topics_have_no_demand(text: str) -> None:
    assert topics.parse_demand(text) is None


@pytest.mark.parametrize(
    "text", ["quote/600519.XX/tick/", "quote/600519.SH/3x/", "l2/600519.SH/x/", "formula/x/", "whole/XX/"]
)
def test_demand_for_what_cannot_exist_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        topics.parse_demand(text)


def test_equal_formulas_share_a_topic_and_different_ones_do_not() -> None:
    one = FormulaSpec("MA", "000001.SZ", params={"N": 5, "M": 10})
    same = FormulaSpec("MA", "000001.SZ", params={"M": 10, "N": 5})
    assert topics.formula_topic(one) == topics.formula_topic(same)
    others = [FormulaSpec("MA", "000001.SZ"), FormulaSpec("MA", "000001.SZ", params={"N": 5, "M": 11})]
    assert len({topics.formula_topic(spec) for spec in (one, *others)}) == 3


@pytest.mark.parametrize("name", ["MA", "我的公式/1", "a b%20+&"])
def test_formula_request_comes_back_from_its_topic(name: str) -> None:
    spec = FormulaSpec(name, "IF00.IF", "5m", 100, "front", {"N": 5, "x": 1.5, "s": "字"})
    topic = topics.formula_topic(spec)
    assert topic.isascii()
    assert topic.count("/") == 2
    assert topics.formula_spec(topics.parse_topic(topic)) == spec


def test_formula_topic_that_is_not_canonical_is_refused() -> None:
    topic = topics.formula_topic(FormulaSpec("MA", "000001.SZ")).replace("%3A", "%3A%20", 1)
    with pytest.raises(BadRequest, match="canonical"):
        topics.parse_demand(topic)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (FormulaSpec("", "000001.SZ"), "formula_name"),
        (FormulaSpec("MA", "000001"), "not a code"),
        (FormulaSpec("MA", "000001.SZ", "3x"), "unknown period"),
        (FormulaSpec("MA", "000001.SZ", dividend_type="x"), "unknown dividend_type"),
    ],
)
def test_bad_formula_is_named(spec: FormulaSpec, said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        topics.formula_topic(spec)


@pytest.mark.parametrize(
    ("versions", "periods"),
    [
        ("code", ["tick", "l2quote", "l2quoteaux", "fullspeedorderbook"]),
        ("bar", list(topics.BAR_PERIODS)),
        ("none", ["l2order", "l2transaction", "l2orderqueue", "l2transactioncount", "hftransactioncount"]),
        ("none", ["announcement", "brokerqueue", "transactioncount1m", "etfiopv1d", "l2thousandqueue"]),
    ],
)
def test_what_may_replace_what_follows_the_period(versions: str, periods: list[str]) -> None:
    for period in periods:
        topic = topics.quote_topic("600519.SH", period)
        assert topics.behaviour_of(topic).versions == versions
        assert topics.parse_topic(topic).behaviour is topics.behaviour_of(topic)


@pytest.mark.parametrize(
    ("topic", "versions"),
    [
        (topics.whole_topic("SH"), "code"),
        (topics.l2_topic("600519.SH", 5), "code"),
        (topics.formula_topic(FormulaSpec("MA", "000001.SZ")), "values"),
        (topics.download_topic("ab"), "topic"),
        (topics.STATUS_TOPIC, "topic"),
        (topics.trade_topic("1"), "none"),
    ],
)
def test_what_may_replace_what_follows_the_kind(topic: topics.Topic, versions: str) -> None:
    assert topics.behaviour_of(topic).versions == versions
    assert topics.parse_topic(topic).behaviour is topics.behaviour_of(topic)


def test_nothing_of_an_unknown_period_may_be_left_out() -> None:
    assert {topics.behaviour_of(text).versions for text in ("quote/", "quote/600519.SH/new/")} == {"none"}
    with pytest.raises(KeyError):
        topics.behaviour_of("strange/600519.SH/tick/")


def test_every_period_of_the_table_exists() -> None:
    assert topics.VERSIONS.keys() <= topics.PERIODS


CANONICAL = topics.formula_topic(FormulaSpec("MA/1", "000001.SZ", params={"N": 5}))


def formula(text: str) -> str:
    return f"formula/{quote(text, safe='')}/"


@pytest.mark.parametrize(
    "text",
    [
        "quote/600519%2ESH/tick/",
        "quote/%3600519.SH/tick/",
        "quote/600519.SH/%74ick/",
        "whole/S%48/",
        "whole/%53H/",
        "whole/600519%2eSH/",
        "l2/600519%2ESH/5/",
        "l2/600519.SH/05/",
        "l2/600519.SH/00/",
        "l2/600519.SH/+5/",
        "l2/600519.SH/-0/",
        "l2/600519.SH/%35/",
        "l2/600519.SH/5 /",
        "l2/600519.SH/1_0/",
        "l2/600519.SH/５/",
        "l2/600519.SH/²/",
        "trade/%31/",
        "trade/a%2fb/",
        "trade/a+b/",
        "trade/a b/",
        "trade/账户/",
        "trade/%FF/",
        "trade/%zz/",
        "trade/%/",
        "trade/%ED%A0%80/",
        "status/f%65eder/",
        "download/%61b-1/",
        CANONICAL.replace("%3A", "%3a", 1),
        CANONICAL.replace("MA", "%4DA", 1),
        formula('{"formula_name":"MA","stock_code":"000001.SZ"}'),
    ],
)
def test_another_spelling_of_a_topic_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        topics.parse_demand(text)


@pytest.mark.parametrize("text", ["trade/%31/", "trade/a%2fb/", "trade/%FF/", "status/f%65eder/", "whole/S%48/"])
def test_another_spelling_is_no_topic_and_the_right_one_is_named(text: str) -> None:
    with pytest.raises(WireError, match="is spelled"):
        topics.parse_topic(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(f"l2/600519.SH/{'9' * 5000}/", id="digits"),
        pytest.param("l2/600519.SH/1001/", id="too-deep"),
        pytest.param(f"quote/{'6' * 100_000}.SH/tick/", id="long"),
        pytest.param("trade/" + "1" * 100_000 + "/", id="long-account"),
        pytest.param("trade/\ud800/", id="surrogate"),
        pytest.param(formula("[" * 5000), id="nested"),
        pytest.param(
            formula('{"formula_name":"MA","stock_code":"000001.SZ","count":' + "9" * 5000 + "}"), id="count-digits"
        ),
        pytest.param(formula('{"formula_name":"\\ud800","stock_code":"000001.SZ"}'), id="half-a-pair"),
        pytest.param(formula('{"formula_name":"MA","stock_code":"000001.SZ","params":{"a":1e400}}'), id="infinite"),
        pytest.param("formula/%FF%FE/", id="no-utf8"),
    ],
)
def test_a_topic_that_cannot_be_is_refused_whatever_is_in_it(text: str) -> None:
    with pytest.raises(BadRequest):
        topics.parse_demand(text)


@pytest.mark.parametrize(
    "spec",
    [
        FormulaSpec("MA", "000001.SZ", count=2**63),
        FormulaSpec("MA", "000001.SZ", count=-(2**63) - 1),
        FormulaSpec("MA", "000001.SZ", params={"N": 2**63}),
    ],
)
def test_a_number_of_more_than_64_bits_is_a_bad_formula(spec: FormulaSpec) -> None:
    with pytest.raises(BadRequest, match="64 bits"):
        topics.formula_topic(spec)
    with pytest.raises(BadRequest):
        topics.parse_demand(formula(msgspec.json.encode(spec, order="deterministic").decode()))


@pytest.mark.parametrize("gear_num", [topics.MAX_GEAR_NUM + 1, pytest.param(10**5000, id="digits")])
def test_more_levels_than_there_are_cannot_be_asked_for(gear_num: int) -> None:
    with pytest.raises(BadRequest, match="at most 1000"):
        topics.l2_topic("600519.SH", gear_num)
    assert topics.parse_demand(topics.l2_topic("600519.SH", topics.MAX_GEAR_NUM)) is not None


@pytest.mark.parametrize(("name", "fits"), [("x" * 3990, True), ("式" * 850, True), ("式" * 950, False)])
def test_a_formula_is_asked_for_only_where_its_topic_fits(name: str, fits: bool) -> None:
    spec = FormulaSpec(name, "000001.SZ")
    if fits:
        assert topics.parse_demand(topics.formula_topic(spec)) is not None
    else:
        with pytest.raises(BadRequest, match="8192 bytes"):
            topics.formula_topic(spec)


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("trade/1000000365/", "trade/******0365/"),
        ("trade/1000000365", "trade/******0365"),
        ("trade/1234/", "trade/****/"),
        ("trade/", "trade/"),
        ("quote/600519.SH/tick/", "quote/600519.SH/tick/"),
        ("x" * 1000, "x" * 80),
    ],
)
def test_an_account_in_a_topic_is_masked_where_it_is_shown(topic: str, shown: str) -> None:
    assert topics.shown_topic(topic) == shown


def test_a_refusal_does_not_show_an_account_in_full() -> None:
    with pytest.raises(BadRequest, match="is spelled 'trade/") as refused:
        topics.parse_demand("trade/100000036%35/")
    assert "10000003" not in refused.value.reason
