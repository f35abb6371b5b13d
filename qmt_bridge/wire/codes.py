"""Check instrument codes by market, and suggest a code for a wrong one.

Pure. The tables are those of the terminal itself, which lie in the wheel of xtquant 250807.1.2: xtdata.get_markets,
config/xtstocktype.lua, config/MarketTime.ini, config/tradeTime.txt, config/config.lua and MarketRegex in
config/user/root2/lua/config.lua. Where they list every form of code, only these pass; elsewhere every symbol
passes that is safe in a topic.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NewType

from qmt_bridge.errors import BadCode

Code = NewType("Code", str)

# Stocks, funds, bonds, indices and options of China: get_markets(), the aliases of the futures exchanges that the
# vendor's functions accept (xtdata.py 2213, 2579), and the markets that only the tables name: NEEQ, options on
# futures (SFO and so on), open-end funds (OF), and indices (SI, CSI).
_CHINA = (
    "SH SZ BJ NEEQ HK HGT SGT SHO SZO BKZS OF ED SI CSI SEHK "
    "IF SF DF ZF GF INE CFFEX SHFE DCE CZCE GFEX IFO SFO DFO ZFO GFO"
).split()
# xtstocktype.lua (abroadFutureMarkets), tradeTime.txt (WP) and MarketRegex.
_ABROAD = (
    "WP YSWP NASDAQ NYSE OSE LPPM CBF LBMA NYB EUREX COMEX CME ICE IFEU IFUS IFLL IFLX CBOT SGX LME NYMEX MX LIFFE "
    "ASX HKFE BAN"
).split()
MARKETS = frozenset((*_CHINA, *_ABROAD))

# The symbol before the last dot. Six characters with letters are indices and instruments without a price:
# SHRQ88 (standard bond), SZXGED (quota of new shares), H30269. 000300 with two digits more is in MarketRegex.
_SIX = r"[0-9]{6}|[A-Z][0-9A-Z]{5}"
_SYMBOL = {
    "SH": re.compile(_SIX + r"|000300[01]{2}"),
    "SZ": re.compile(_SIX),
    "BJ": re.compile(_SIX),
    "NEEQ": re.compile(r"[0-9]{6}"),
    "SHO": re.compile(r"[0-9]{8}"),
    "SZO": re.compile(r"[0-9]{8}"),
}
# Futures keep the letter case of their exchange; their options have "-", combinations "&" and single spaces
# ("SP a2501&a2505").
_ANY_SYMBOL = re.compile(r"(?=.{1,40}\Z)[A-Za-z0-9](?: ?[A-Za-z0-9_&-])*")
# A fund of market ED has a dot ("WD000001.OF"), so has a product abroad ("ICE.IFEU:B").
_DOTTED_SYMBOL = re.compile(r"(?=.{1,40}\Z)[A-Za-z0-9](?: ?[A-Za-z0-9_&:.-])*")
_SYMBOL |= dict.fromkeys((*_ABROAD, "ED"), _DOTTED_SYMBOL)

# Names of markets in other programs: ISO 10383 (joinquant, yfinance), Wind and tushare, Juejin, Tonghuashun.
_ALIASES = {
    "SH": "XSHG SS SSE SHSE USHA",
    "SZ": "XSHE SZSE USZA",
    "BJ": "XBSE BSE BJSE XBJS",
    "HK": "XHKG HKEX",
    "IF": "CCFX CFE CFX CFFX",
    "SF": "XSGE SHF",
    "DF": "XDCE",
    "ZF": "XZCE CZC ZCE",
    "GF": "XGFE GFE",
    "INE": "XINE",
}
_MEANT = {name: name for name in MARKETS} | {
    alias: market for market, aliases in _ALIASES.items() for alias in aliases.split()
}
# The market of a number of six digits by its first digits; any other may be of Shanghai or Shenzhen.
_BEGINNINGS = {
    "SH": ("5", "6", "900", "204", "688", "110", "113", "118", "010", "019", "020"),
    "SZ": ("001", "002", "003", "200", "30", "39", "131", "15", "16", "18"),
    "BJ": ("92", "899"),
    "NEEQ": ("400", "420"),
    "SZ SH": ("000",),
    "BJ NEEQ": ("43", "83", "87"),
}
# The markets in which a number of six digits is a whole symbol, with those of their options.
_NUMBERED = frozenset("SH SZ BJ NEEQ SHO SZO".split())
# Characters around a code in a list, a JSON text or a cell of Excel (="600519.SH").
_AROUND = " \t\r\n'\"`=,;[]()\u2018\u2019\u201c\u201d"
_LONGEST_MISTAKE = 64
_SPLIT = re.compile(r"([A-Z]{2,5})[ .:_-]?([0-9]{1,8})|([0-9]{1,8})[ .,:_-]?([A-Z]{2,5})")


def check_code(text: object) -> Code:
    """Return `text` as a code, or raise `BadCode` with the mistake and, if there is one, a suggestion."""
    if not isinstance(text, str):
        # pandas turns a column of numbers into floats if one is missing.
        is_number = isinstance(text, int | float)
        hint = _hint(str(text)) if is_number else ""
        # Anything else may be deep or large, and is not repeated.
        raise BadCode(str(text) if is_number else "", f"code must be a string, not {type(text).__name__}{hint}")
    if is_code(text):
        return Code(text)
    _, dot, market = text.rpartition(".")
    if not dot:
        reason = f"{text[:40]!r} is not a code like '600519.SH'"
    elif market not in MARKETS:
        reason = f"unknown market {market[:20]!r} in {text[:40]!r}"
    else:
        reason = f"{text[:40]!r} is not a code of market {market}"
    raise BadCode(text, reason + _hint(text))


def check_market_or_code(text: str) -> str:
    """Return `text` if it is a market or a code, as whole quotes take both; else raise `BadCode`."""
    if text in MARKETS:
        return text
    if market := _MEANT.get(_plain(text[:_LONGEST_MISTAKE])):
        raise BadCode(text, f"{text[:40]!r} is neither a market nor a code; did you mean {market!r}?")
    return check_code(text)


def is_code(text: str) -> bool:
    """Return whether `text` is a code; this takes a tenth of the time of a refusal with a suggestion."""
    symbol, _, market = text.rpartition(".")
    return market in MARKETS and _SYMBOL.get(market, _ANY_SYMBOL).fullmatch(symbol) is not None


def _hint(text: str) -> str:
    if len(text) > _LONGEST_MISTAKE:
        return ""
    if _plain(text) in MARKETS:
        return "; a market alone is for whole quotes"
    meant = [code for code in dict.fromkeys(_meant(text)) if is_code(code)]
    return f"; did you mean {' or '.join(map(repr, meant))}?" if meant else ""


def _plain(text: str) -> str:
    """Return `text` in capitals without full-width forms, marks, and quotes or spaces around; with single dots."""
    narrow = unicodedata.normalize("NFKC", text).replace("\u3002", ".")
    visible = "".join(each for each in narrow if unicodedata.category(each) not in ("Cf", "Cc"))
    return re.sub(r"[ .]*\.[ .]*", ".", visible.strip(_AROUND)).strip().upper()


def _meant(text: str) -> Iterator[str]:
    """Yield codes that `text` may mean; the caller checks that they are codes."""
    plain = _plain(text)
    if plain.isdecimal() or re.fullmatch(r"[0-9]+\.0", plain):
        yield from _of_number(plain.removesuffix(".0"))
        return
    # "SH600519.SH" names its market twice. In "IF2506.IF" the first letters are the product.
    _, dot, market = plain.rpartition(".")
    if (
        dot
        and market in _NUMBERED
        and (twice := re.fullmatch(rf"(?:{market}([0-9]+)|([0-9]+)\.{market})\.{market}", plain))
    ):
        plain = f"{twice[1] or twice[2]}.{market}"
    if split := _SPLIT.fullmatch(plain):
        market, number = (split[1], split[2]) if split[1] else (split[4], split[3])
        if market not in _MEANT:
            # `600519.XX`: the number shows the market. A shorter one is a future ("rb2510") or a concept ("BK0475").
            if len(number) in (6, 8):
                yield from _of_number(number)
            return
        market = _MEANT[market]
        options = {"SH": "SHO", "SZ": "SZO"}
        stocks = {option: stock for stock, option in options.items()}
        if len(number) == 8:
            yield f"{number}.{options.get(market, market)}"
        elif len(number) == 6:
            yield f"{number}.{stocks.get(market, market)}"
        elif market in ("HK", "HGT", "SGT"):
            yield f"{number:0>5}.{market}"
        elif market in _NUMBERED:
            # A program that read the code as a number has dropped the leading zeros.
            yield f"{number:0>6}.{market}"
        elif split[1] == market:
            # In "IF2506" the product has the same name as its exchange.
            yield f"{market}{number}.{market}"
    elif dot and market in _MEANT:
        # Some exchanges write futures in small letters: only the market is certainly in capitals.
        symbol = re.sub(" +", " ", unicodedata.normalize("NFKC", text).strip().rpartition(".")[0]).strip()
        yield f"{symbol}.{_MEANT[market]}"


def _of_number(number: str) -> Iterator[str]:
    """Yield the codes that a number without a market may be; the likelier first."""
    if len(number) == 8:
        yield f"{number}.{'SZO' if number.startswith('9') else 'SHO'}"
    elif len(number) == 5:
        yield f"{number}.HK"
    elif len(number) <= 6:
        number = f"{number:0>6}"
        for markets, beginnings in _BEGINNINGS.items():
            if number.startswith(beginnings):
                yield from (f"{number}.{market}" for market in markets.split())
                return
        yield from (f"{number}.SZ", f"{number}.SH")
