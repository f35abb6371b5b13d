"""Instrument codes: what the terminal lists passes, what cannot be is named with what was probably meant."""

from __future__ import annotations

import csv
import gzip
import re
import string
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest

from qmt_bridge.errors import BadCode
from qmt_bridge.wire.codes import MARKETS, check_code, check_market_or_code
from qmt_bridge.wire.topics import parse_demand, parse_topic, quote_topic, whole_topic
from tests.support.paths import DATA

recorded = pytest.mark.skipif(not DATA.is_dir(), reason="the recorded lists are not beside the project")
spec = find_spec("xtquant")
assert spec is not None
assert spec.origin is not None
WHEEL = Path(spec.origin).parent


def table(name: str) -> str:
    """Return a file of the wheel's own configuration; they have several encodings, and only ASCII of it is asked."""
    return (WHEEL / "config" / name).read_text(encoding="latin-1")


def reason(code: object) -> str:
    with pytest.raises(BadCode) as caught:
        check_code(code)
    assert caught.value.code == "unknown_symbol"
    return caught.value.reason


# -- Codes of the terminal's tables


def test_every_market_of_get_markets_is_known() -> None:
    listed = re.search(r"def get_markets\(\):.*?return \{(.*?)\}", (WHEEL / "xtdata.py").read_text("utf-8"), re.DOTALL)
    assert listed is not None
    names = set(re.findall(r"'([A-Z]+)'", listed[1]))
    assert len(names) == 15
    assert names <= MARKETS


def test_every_market_of_the_wheels_tables_is_known() -> None:
    types = table("xtstocktype.lua")
    names = set(re.findall(r',([A-Z]{2,4}),\d+"', types))
    abroad = re.search(r'abroadFutureMarkets = "([A-Z,]+)"', types)
    assert abroad is not None
    names |= set(abroad[1].split(","))
    names |= set(re.findall(r"^\[([A-Z]+)\]", table("MarketTime.ini"), re.MULTILINE))
    names |= set(re.findall(r"^\d\|([A-Z]+)\|", table("tradeTime.txt"), re.MULTILINE))
    names |= {name.rpartition(".")[2] for name in re.findall(r"^1\|WP\|([A-Z.]+):", table("tradeTime.txt"), re.M)}
    names |= set(re.findall(r'\{market = "([A-Z]+)", regex', table("user/root2/lua/config.lua")))
    assert len(names) > 50
    assert names - MARKETS == set()


def test_every_form_of_code_in_the_table_of_types_passes() -> None:
    random = Random(1)
    checked = 0
    for forms, market in re.findall(r'"([^"]+),([A-Z]{2,4}),\d+"', table("xtstocktype.lua")):
        # "*" is any digit, "?" the rest of an option, "^&&" joins two of an arbitrage.
        for form in forms.split("|"):
            code = form.replace("^&&", "&").replace("?", "C4000")
            code = re.sub(r"\*", lambda _: random.choice(string.digits), code)
            # Two are mistakes of the table itself: five characters where every other has six.
            if market in ("SH", "SZ") and len(code) == 5:
                continue
            if market == "SHO":
                code += "01"
            assert check_code(f"{code}.{market}") == f"{code}.{market}"
            checked += 1
    assert checked > 1500


def test_every_product_of_futures_passes_in_each_form() -> None:
    products = re.findall(r'^    \["\d+"\]="([A-Za-z& ]+)"', table("config.lua"), re.MULTILINE)
    assert "SP a&a" in products
    for product in products:
        contract = product.replace("&", "2501&") + "2505"
        assert check_code(f"{contract}.DF") == f"{contract}.DF"
    for market, product in re.findall(r"^1\|([A-Z]+)\|([A-Za-z0-9.:]+)\|", table("tradeTime.txt"), re.MULTILINE):
        assert check_code(f"{product}2505.{market}")


@pytest.mark.parametrize(
    "code",
    [
        "600519.SH",
        "000001.SZ",
        "920001.BJ",
        "430047.NEEQ",
        "SHRQ88.SH",
        "SZXGED.SZ",
        "H30269.SH",
        "10004355.SHO",
        "90000001.SZO",
        "290001.BKZS",
        "IF2512.IF",
        "a2601.DF",
        "SR601C5600.ZF",
        "00700.HK",
        "00700.HGT",
        "IO2512-C-4000.IF",
        "m2501-C-3000.DFO",
        "SP a2501&a2505.DF",
        "SPD CF501&CF505.ZF",
        "IPS SF501&SM501.ZF",
        "sc2501TAS.INE",
        "H30009.CSI",
        "801010.SI",
        "XT000001.OF",
        "WD000001.OF.ED",
        "BRK-B.NYSE",
        "ICE.IFEU:B.WP",
        "CNINDEX.YSWP",
    ],
)
def test_code_passes_and_comes_back_from_its_topic(code: str) -> None:
    assert check_code(code) == code
    topic = quote_topic(code)
    assert topic == f"quote/{code}/tick/"
    assert parse_topic(topic).name == code
    assert parse_demand(topic) == parse_topic(topic)


@recorded
def test_every_code_of_the_recorded_lists_passes() -> None:
    found = set()
    for path in sorted((DATA / "lists").glob("*.csv")):
        with path.open(encoding="utf-8-sig", newline="") as file:
            found |= {row["ts_code"] for row in csv.DictReader(file)}
    for path in sorted((DATA / "ticks").glob("*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            found |= {row["code"] for row in csv.DictReader(file)}
    assert len(found) > 5400
    assert {check_code(code) for code in found} == found


def test_every_code_that_passes_is_safe_in_a_topic() -> None:
    random = Random(2)
    alphabet = string.printable + "%/\\.&+é中\0"
    passed = 0
    for _ in range(20_000):
        symbol = "".join(random.choices(alphabet, k=random.randrange(1, 7)))
        code = f"{symbol}.{random.choice(sorted(MARKETS))}"
        try:
            check_code(code)
        except BadCode:
            continue
        passed += 1
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 &_:.-]*", code)
        assert parse_topic(quote_topic(code)).name == code
    assert passed > 100


# -- Wrong codes


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("600519", "not a code like"),
        ("", "not a code like"),
        (".SH", "not a code of market SH"),
        ("600519.", "unknown market"),
        ("600519.sh", "unknown market 'sh'"),
        ("600519.XX", "unknown market 'XX'"),
        ("60051.SH", "not a code of market SH"),
        ("60051A.SH", "not a code of market SH"),
        ("６００５１９.SH", "not a code of market SH"),
        ("600519.SH/tick", "unknown market"),
        ("600519%2ESH", "not a code like"),
        ("600519.SH\n", "unknown market"),
        ("../../etc.IF", "not a code of market IF"),
        ("a/b.IF", "not a code of market IF"),
        ("a%20b.IF", "not a code of market IF"),
        ("a  b.DF", "not a code of market DF"),
        (" a.DF", "not a code of market DF"),
        ("a .DF", "not a code of market DF"),
        ("a.b.DF", "not a code of market DF"),
        ("x" * 41 + ".DF", "not a code of market DF"),
        ("10004355.SH", "not a code of market SH"),
        (600519, "must be a string, not int"),
        (6e5, "must be a string, not float"),
        (True, "must be a string, not bool"),
        (None, "must be a string, not NoneType"),
    ],
)
def test_code_that_cannot_be_is_named(code: object, said: str) -> None:
    assert said in reason(code)


@pytest.mark.parametrize(
    ("code", "meant"),
    [
        # The market in small letters, in another program's name, before the number, or without a dot
        ("600519.sh", "600519.SH"),
        ("SHRQ88.sh", "SHRQ88.SH"),
        ("rb2510.sf", "rb2510.SF"),
        ("600519.XSHG", "600519.SH"),
        ("000001.XSHE", "000001.SZ"),
        ("600519.SS", "600519.SH"),
        ("IF2512.CCFX", "IF2512.IF"),
        ("rb2510.XSGE", "rb2510.SF"),
        ("SH600519", "600519.SH"),
        ("sz000001", "000001.SZ"),
        ("sh.600519", "600519.SH"),
        ("SHSE.600519", "600519.SH"),
        ("SH600519.SH", "600519.SH"),
        ("600519SH", "600519.SH"),
        ("600519,SH", "600519.SH"),
        ("600519_sh", "600519.SH"),
        # An option among shares, a share among options
        ("10004355.SH", "10004355.SHO"),
        ("90000001.SZ", "90000001.SZO"),
        ("510050.SHO", "510050.SH"),
        # Invisible characters
        ("６００５１９．ＳＨ", "600519.SH"),
        (" 600519.SH ", "600519.SH"),
        ("600519.SH\r\n", "600519.SH"),
        ("\ufeff600519.SH", "600519.SH"),
        ("SP  a2501&a2505.DF", "SP a2501&a2505.DF"),
        ("600519 . SH", "600519.SH"),
        ("600519..SH", "600519.SH"),
        ("'600519.SH'", "600519.SH"),
        ('="600519.SH"', "600519.SH"),
        ("600519.SH.SH", "600519.SH"),
        # The letters of a future are its product, and not a market beside a number
        ("IF2506", "IF2506.IF"),
        ("ＩＦ２５０６.IF", "IF2506.IF"),
        # Leading zeros that a spreadsheet dropped
        ("1.SZ", "000001.SZ"),
        ("700.hk", "00700.HK"),
        # No market
        ("600519", "600519.SH"),
        ("300750", "300750.SZ"),
        ("920001", "920001.BJ"),
        ("10004355", "10004355.SHO"),
        ("00700", "00700.HK"),
        ("600519.XX", "600519.SH"),
        ("600519.0", "600519.SH"),
        (600519, "600519.SH"),
    ],
)
def test_hint_says_which_code_was_meant(code: object, meant: str) -> None:
    assert reason(code).endswith(f"; did you mean {meant!r}?")
    assert check_code(meant) == meant


@pytest.mark.parametrize(
    ("code", "both"),
    [
        ("000001", "'000001.SZ' or '000001.SH'"),
        ("1", "'000001.SZ' or '000001.SH'"),
        ("127001", "'127001.SZ' or '127001.SH'"),
        ("430047", "'430047.BJ' or '430047.NEEQ'"),
    ],
)
def test_hint_gives_both_where_two_may_be_meant(code: str, both: str) -> None:
    assert reason(code).endswith(f"; did you mean {both}?")


@pytest.mark.parametrize(
    "code",
    [
        "",
        "x",
        "maotai",
        "rb2510",
        "HC2510",
        "BK0475",
        "AU2512.XX",
        "贵州茅台",
        "x" * 100_000,
        "1" * 100_000,
        "600519.SH/tick",
        "٦٠٠٥١٩",
    ],
)
def test_no_hint_where_nothing_can_be_meant(code: str) -> None:
    assert "did you mean" not in reason(code)
    assert len(reason(code)) < 200


def test_code_that_pandas_made_a_float_has_a_hint() -> None:
    assert reason(600519.0).endswith("did you mean '600519.SH'?")


def test_market_alone_is_for_whole_quotes() -> None:
    assert "a market alone is for whole quotes" in reason("SH")
    assert "a market alone is for whole quotes" in reason("sh")
    assert check_market_or_code("SH") == "SH"
    assert check_market_or_code("600519.SH") == "600519.SH"


@pytest.mark.parametrize(("name", "meant"), [("sh", "SH"), (" SZ", "SZ"), ("XSHG", "SH"), ("600519.sh", "600519.SH")])
def test_whole_quote_of_a_market_written_otherwise_has_a_hint(name: str, meant: str) -> None:
    with pytest.raises(BadCode, match=f"did you mean {meant!r}"):
        whole_topic(name)
