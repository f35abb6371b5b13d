"""Tongdaxin's (通达信) formulas over bars, for the simulator; in a live session the terminal calculates them.

Pure: runs on the caller's thread, takes time proportional to the number of bars, never reads a clock. A value that is
not defined is NaN, which becomes null on the wire:

- A window (MA, BOLL, the range of KDJ) has no value before it is full.
- A recursion (EMA, SMA) starts with its first input, as Tongdaxin's does, so EMA and MACD have a value at the
  first bar and RSI, which needs a change, at the second.
- 0/0 has no value: RSI while the close has never moved. KDJ's RSV while the whole range is one price is left
  out of the recursion, so K keeps its value and a flat stretch does not spoil what comes after it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from qmt_bridge.errors import Refused

Bars: TypeAlias = Sequence[Mapping[str, float | int]]
Series: TypeAlias = list[float]

# Beyond any history; keeps a period exact as a float.
_LONGEST = 1_000_000


class Parameter(NamedTuple):
    """A formula's parameter: a number of bars of at least `least`; any number above 0 if `least` is 0."""

    default: int
    least: int = 1


class Form(NamedTuple):
    """One way to call a formula; `compute` takes the bars and the parameters in order, returns the outputs."""

    parameters: Mapping[str, Parameter]
    outputs: tuple[str, ...]
    compute: Callable[..., Sequence[Series]]


def calculate(name: str, bars: Bars, params: Mapping[str, int | float | str]) -> dict[str, list[float]]:
    """Return the outputs of the formula `name` by their names, each as long as `bars`.

    Names are case-insensitive; a parameter may carry its model as xtquant's do (``MA:M1``). Raises `Refused` that
    names an unknown formula or parameter, or a value that is not a positive number (of bars: a whole one).
    """
    forms = FORMULAS.get(name.strip().upper())
    if forms is None:
        raise Refused("upstream_refused", f"unknown formula {name!r}; expected one of {', '.join(FORMULAS)}")
    given = {_parameter_name(name, key): value for key, value in params.items()}
    form = next((form for form in forms if given.keys() <= form.parameters.keys()), None)
    if form is None:
        unknown = [key for key in given if not any(key in form.parameters for form in forms)]
        fault = f"unknown parameter {', '.join(unknown)}" if unknown else f"{', '.join(given)} do not go together"
        known = " or ".join(", ".join(form.parameters) for form in forms)
        raise Refused("upstream_refused", f"{name}: {fault}; expected {known}")
    values = [
        _number(name, key, given[key], parameter) if key in given else parameter.default
        for key, parameter in form.parameters.items()
    ]
    return dict(zip(form.outputs, form.compute(bars, *values), strict=True))


def _parameter_name(formula: str, key: str) -> str:
    model, separator, parameter = key.strip().upper().rpartition(":")
    # The prefix of another model stays: it makes the name an unknown one.
    return parameter if separator and model == formula.strip().upper() else key.strip().upper()


def _number(formula: str, key: str, value: int | float | str, parameter: Parameter) -> int | float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if parameter.least == 0 and 0 < number <= _LONGEST:
        return number
    if parameter.least and parameter.least <= number <= _LONGEST and number.is_integer():
        return int(number)
    kind = f"a whole number from {parameter.least} to" if parameter.least else "a number above 0 and at most"
    raise Refused("upstream_refused", f"{key} of {formula} must be {kind} {_LONGEST}, not {value!r}")


def _column(bars: Bars, field: str) -> Series:
    return [float(bar[field]) for bar in bars]


def _moments(values: Series, n: int) -> tuple[Series, Series]:
    """Return mean and sample deviation of the last `n` values (Welford's update: flat prices stay exact)."""
    means, deviations = [], []
    mean = squares = 0.0
    for i, value in enumerate(values):
        before = mean
        if i < n:
            mean += (value - mean) / (i + 1)
            squares += (value - before) * (value - mean)
        else:
            oldest = values[i - n]
            mean += (value - oldest) / n
            squares += (value - oldest) * (value - mean + oldest - before)
        full = i + 1 >= n
        means.append(mean if full else math.nan)
        # Rounding may leave a sum of squares just below 0.
        deviations.append(math.sqrt(max(squares, 0.0) / (n - 1)) if full and n > 1 else math.nan)
    return means, deviations


def _extremes(values: Series, n: int, sign: int) -> Series:
    """Return the highest (`sign` 1) or lowest (-1) of the last `n` values."""
    found = []
    # Indexes of the values that may still become the extreme, best first.
    candidates: deque[int] = deque()
    for i, value in enumerate(values):
        while candidates and sign * values[candidates[-1]] <= sign * value:
            candidates.pop()
        candidates.append(i)
        if candidates[0] <= i - n:
            candidates.popleft()
        found.append(values[candidates[0]] if i + 1 >= n else math.nan)
    return found


def _recursion(values: Series, weight: float) -> Series:
    """Return Y = weight*X + (1-weight)*Y', beginning with the first X; Y keeps its value where X has none."""
    results = []
    result = math.nan
    for value in values:
        if math.isnan(result):
            result = value
        elif not math.isnan(value):
            result += weight * (value - result)
        results.append(result)
    return results


def _ema(values: Series, n: int) -> Series:
    return _recursion(values, 2 / (n + 1))


def _sma(values: Series, n: int) -> Series:
    return _recursion(values, 1 / n)


def _averages(bars: Bars, *periods: int) -> list[Series]:
    closes = _column(bars, "close")
    return [_moments(closes, n)[0] for n in periods]


def _exponential(bars: Bars, n: int) -> list[Series]:
    return [_ema(_column(bars, "close"), n)]


def _macd(bars: Bars, short: int, long: int, mid: int) -> list[Series]:
    closes = _column(bars, "close")
    dif = [fast - slow for fast, slow in zip(_ema(closes, short), _ema(closes, long), strict=True)]
    dea = _ema(dif, mid)
    return [dif, dea, [2 * (a - b) for a, b in zip(dif, dea, strict=True)]]


def _kdj(bars: Bars, n: int, m1: int, m2: int) -> list[Series]:
    highest = _extremes(_column(bars, "high"), n, 1)
    lowest = _extremes(_column(bars, "low"), n, -1)
    rsv = [
        math.nan if high == low else (close - low) / (high - low) * 100
        for close, high, low in zip(_column(bars, "close"), highest, lowest, strict=True)
    ]
    k = _sma(rsv, m1)
    d = _sma(k, m2)
    return [k, d, [3 * a - 2 * b for a, b in zip(k, d, strict=True)]]


def _rsi(bars: Bars, *periods: int) -> list[Series]:
    closes = _column(bars, "close")
    # The first close has nothing to change from.
    changes = [close - before for before, close in zip([math.nan, *closes], closes, strict=False)]
    rises = [change if math.isnan(change) else max(change, 0.0) for change in changes]
    moves = [abs(change) for change in changes]
    return [
        [rise / move * 100 if move else math.nan for rise, move in zip(_sma(rises, n), _sma(moves, n), strict=True)]
        for n in periods
    ]


def _boll(bars: Bars, m: int, p: float) -> list[Series]:
    middle, deviations = _moments(_column(bars, "close"), m)
    upper = [mean + p * deviation for mean, deviation in zip(middle, deviations, strict=True)]
    lower = [mean - p * deviation for mean, deviation in zip(middle, deviations, strict=True)]
    return [middle, upper, lower]


def _periods(**defaults: int) -> dict[str, Parameter]:
    return {name: Parameter(default) for name, default in defaults.items()}


# By name, every form of the formula; a call takes the first one that knows all the parameters it was given.
FORMULAS: dict[str, tuple[Form, ...]] = {
    "MA": (
        Form(_periods(M1=5, M2=10, M3=20, M4=60), ("MA1", "MA2", "MA3", "MA4"), _averages),
        Form(_periods(N1=5, N2=10, N3=20, N4=60), ("MA1", "MA2", "MA3", "MA4"), _averages),
        Form(_periods(N=5), ("MA",), _averages),
    ),
    "EMA": (Form(_periods(N=12), ("EMA",), _exponential),),
    "MACD": (Form(_periods(SHORT=12, LONG=26, MID=9), ("DIF", "DEA", "MACD"), _macd),),
    "KDJ": (Form(_periods(N=9, M1=3, M2=3), ("K", "D", "J"), _kdj),),
    "RSI": (
        Form(_periods(N1=6, N2=12, N3=24), ("RSI1", "RSI2", "RSI3"), _rsi),
        Form(_periods(N=6), ("RSI",), _rsi),
    ),
    "BOLL": (
        # The sample deviation of one close is 0/0.
        Form({"M": Parameter(20, 2), "P": Parameter(2, 0)}, ("BOLL", "UB", "LB"), _boll),
        Form({"N": Parameter(20, 2), "P": Parameter(2, 0)}, ("BOLL", "UB", "LB"), _boll),
    ),
}
