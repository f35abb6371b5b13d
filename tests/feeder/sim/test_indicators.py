from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from random import Random

import pytest

from feeder.sim.indicators import FORMULAS, calculate
from qmt_bridge.errors import Refused

NAN = math.nan


def flat(*closes: float) -> list[dict[str, float]]:
    return [{"open": close, "high": close, "low": close, "close": close} for close in closes]


def wandering(count: int, seed: int) -> list[dict[str, float]]:
    rng = Random(seed)
    close, bars = 10.0, []
    for _ in range(count):
        before, close = close, max(0.5, round(close + rng.uniform(-0.4, 0.4), 2))
        high, low = max(before, close) + rng.choice((0, 0.05)), min(before, close) - rng.choice((0, 0.05))
        bars.append({"open": before, "high": high, "low": low, "close": close})
    return bars


def close_to(expected: list[float]) -> object:
    return pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


# The reference functions below follow the definitions literally and read the whole history for every bar.


def ema(values: list[float], n: int) -> float:
    result = values[0]
    for value in values[1:]:
        result = (2 * value + (n - 1) * result) / (n + 1)
    return result


def sma(values: list[float], n: int) -> float:
    result = values[0]
    for value in values[1:]:
        result = (value + (n - 1) * result) / n
    return result


def reference_macd(bars: list[dict[str, float]], short: int, long: int, mid: int) -> dict[str, list[float]]:
    closes = [bar["close"] for bar in bars]
    dif = [ema(closes[: i + 1], short) - ema(closes[: i + 1], long) for i in range(len(bars))]
    dea = [ema(dif[: i + 1], mid) for i in range(len(bars))]
    return {"DIF": dif, "DEA": dea, "MACD": [2 * (a - b) for a, b in zip(dif, dea, strict=True)]}


def reference_kdj(bars: list[dict[str, float]], n: int, m1: int, m2: int) -> dict[str, list[float]]:
    rsv = []
    for i in range(n - 1, len(bars)):
        window = bars[i - n + 1 : i + 1]
        low, high = min(bar["low"] for bar in window), max(bar["high"] for bar in window)
        rsv.append((bars[i]["close"] - low) / (high - low) * 100)
    k = [sma(rsv[: i + 1], m1) for i in range(len(rsv))]
    d = [sma(k[: i + 1], m2) for i in range(len(rsv))]
    j = [3 * a - 2 * b for a, b in zip(k, d, strict=True)]
    return {name: [NAN] * (n - 1) + values for name, values in (("K", k), ("D", d), ("J", j))}


def reference_rsi(bars: list[dict[str, float]], n: int) -> list[float]:
    changes = [bars[i]["close"] - bars[i - 1]["close"] for i in range(1, len(bars))]
    result = [NAN]
    for i in range(len(changes)):
        rise = sma([max(change, 0) for change in changes[: i + 1]], n)
        result.append(rise / sma([abs(change) for change in changes[: i + 1]], n) * 100)
    return result


def reference_window(bars: list[dict[str, float]], n: int, measure: object) -> list[float]:
    closes = [bar["close"] for bar in bars]
    assert callable(measure)
    return [measure(closes[i - n + 1 : i + 1]) if i + 1 >= n else NAN for i in range(len(bars))]


def test_small_averages_worked_by_hand() -> None:
    assert calculate("MA", flat(1, 2, 3, 4), {"N": 3}) == {"MA": close_to([NAN, NAN, 2, 3])}
    # weight 2/3: 3, then 4 + 1, then 16/3 + 5/3
    assert calculate("EMA", flat(3, 6, 8), {"N": 2}) == {"EMA": close_to([3, 5, 7])}


def test_small_macd_worked_by_hand() -> None:
    # EMA1 is the close; EMA3 halves: 8, 10, 13 -> 8, 9, 11; DIF 0, 1, 2; DEA with weight 2/4: 0, 0.5, 1.25
    macd = calculate("MACD", flat(8, 10, 13), {"SHORT": 1, "LONG": 3, "MID": 3})
    assert macd == {"DIF": close_to([0, 1, 2]), "DEA": close_to([0, 0.5, 1.25]), "MACD": close_to([0, 1, 1.5])}


def test_small_kdj_worked_by_hand() -> None:
    bars = [
        {"high": 12.0, "low": 8.0, "close": 10.0},
        {"high": 13.0, "low": 9.0, "close": 13.0},
        {"high": 13.0, "low": 5.0, "close": 7.0},
    ]
    # RSV: -, (13-8)/(13-8) = 100, (7-5)/(13-5) = 25; K with weight 1/3: 100, 75; D: 100, 91.67
    kdj = calculate("KDJ", bars, {"N": 2})
    assert kdj == {
        "K": close_to([NAN, 100, 75]),
        "D": close_to([NAN, 100, 275 / 3]),
        "J": close_to([NAN, 100, 225 - 550 / 3]),
    }


def test_small_rsi_worked_by_hand() -> None:
    # changes +2, -1, +2 with weight 1/2: rises 2, 1, 1.5; moves 2, 1.5, 1.75
    assert calculate("RSI", flat(10, 12, 11, 13), {"N": 2}) == {"RSI": close_to([NAN, 100, 200 / 3, 600 / 7])}


def test_small_boll_worked_by_hand_has_the_sample_deviation() -> None:
    # mean of 2, 4, 6 is 4; sample variance (4 + 0 + 4) / 2 = 4
    boll = calculate("BOLL", flat(2, 4, 6), {"M": 3, "P": 1.5})
    assert boll == {"BOLL": close_to([NAN, NAN, 4]), "UB": close_to([NAN, NAN, 7]), "LB": close_to([NAN, NAN, 1])}


@pytest.mark.parametrize("seed", range(3))
def test_formulas_agree_with_a_slow_reference(seed: int) -> None:
    bars = wandering(150, seed)
    averages = calculate("MA", bars, {})
    for output, n in (("MA1", 5), ("MA2", 10), ("MA3", 20), ("MA4", 60)):
        assert averages[output] == close_to(reference_window(bars, n, statistics.fmean))
    closes = [bar["close"] for bar in bars]
    assert calculate("EMA", bars, {"N": 7})["EMA"] == close_to([ema(closes[: i + 1], 7) for i in range(len(bars))])
    for output, values in reference_macd(bars, 12, 26, 9).items():
        assert calculate("MACD", bars, {})[output] == close_to(values), output
    for output, values in reference_kdj(bars, 9, 3, 3).items():
        assert calculate("KDJ", bars, {})[output] == close_to(values), output
    for output, n in (("RSI1", 6), ("RSI2", 12), ("RSI3", 24)):
        assert calculate("RSI", bars, {})[output] == close_to(reference_rsi(bars, n)), output
    boll = calculate("BOLL", bars, {})
    deviations = reference_window(bars, 20, statistics.stdev)
    for sign, output in ((0, "BOLL"), (2, "UB"), (-2, "LB")):
        band = [
            mean + sign * deviation
            for mean, deviation in zip(reference_window(bars, 20, statistics.fmean), deviations, strict=True)
        ]
        assert boll[output] == close_to(band), output


def test_the_band_of_flat_prices_after_a_fall_has_width_zero() -> None:
    # Rounding makes the updated sum of squares negative here.
    boll = calculate("BOLL", flat(30000, 30000, 10.03, 10.03, 10.03), {"M": 3})
    assert boll["UB"][-1] == boll["BOLL"][-1] == boll["LB"][-1] == pytest.approx(10.03)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_every_output_is_as_long_as_the_bars(name: str, count: int) -> None:
    for form in FORMULAS[name]:
        outputs = calculate(name, wandering(count, 1), {key: value.default for key, value in form.parameters.items()})
        assert tuple(outputs) == form.outputs
        assert {len(values) for values in outputs.values()} == {count}


@pytest.mark.parametrize(("name", "params"), [("MA", {}), ("KDJ", {}), ("BOLL", {})])
def test_windows_longer_than_the_history_have_no_value(name: str, params: Mapping[str, int]) -> None:
    for values in calculate(name, wandering(4, 1), params).values():
        assert all(math.isnan(value) for value in values)


def test_constant_prices_give_flat_lines_and_no_rsi_or_kdj() -> None:
    bars = flat(*[10.03] * 80)
    assert calculate("MA", bars, {})["MA4"][59:] == [10.03] * 21
    boll = calculate("BOLL", bars, {})
    assert boll["UB"][19:] == boll["LB"][19:] == boll["BOLL"][19:] == [10.03] * 61
    assert calculate("MACD", bars, {})["MACD"] == [0.0] * 80
    for name in ("RSI", "KDJ"):
        for values in calculate(name, bars, {}).values():
            assert all(math.isnan(value) for value in values)


def test_kdj_keeps_k_while_prices_are_flat_and_then_continues() -> None:
    kdj = calculate("KDJ", flat(10, 11, 12, 12, 12, 11), {"N": 2})
    # RSV is 100 and 100, then has no value twice, then is 0
    assert kdj["K"] == close_to([NAN, 100, 100, 100, 100, 200 / 3])


def test_rsi_stays_in_its_bounds_and_is_kept_for_an_equal_close() -> None:
    rsi = calculate("RSI", flat(10, 11, 10.5, 10.5, 10.5), {"N": 6})["RSI"]
    assert rsi[3:] == close_to([rsi[2], rsi[2]])
    assert calculate("RSI", flat(10, 9, 8), {"N": 6})["RSI"][1:] == [0, 0]


@pytest.mark.parametrize(
    "params",
    [{"m1": "3"}, {"MA:M1": 3}, {"ma:m1": "3.0"}, {"M1": 3.0}, {"n1": 3}, {" M1 ": 3}],
)
def test_parameters_may_have_any_usual_spelling(params: Mapping[str, int | float | str]) -> None:
    bars = wandering(30, 2)
    averages = calculate(" ma ", bars, params)
    assert averages["MA1"] == calculate("MA", bars, {"N": 3})["MA"]
    assert averages["MA2"] == calculate("MA", bars, {"N": 10})["MA"]


def test_boll_takes_its_period_as_n_too() -> None:
    bars = wandering(30, 2)
    assert calculate("BOLL", bars, {"N": 7, "P": "1.5"}) == {
        name: close_to(values) for name, values in calculate("BOLL", bars, {"M": 7, "P": 1.5}).items()
    }


def test_an_unknown_formula_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        Refused, match=r"unknown formula 'FOO'; expected one of MA, EMA, MACD, KDJ, RSI, BOLL"
    ) as refused:
        calculate("FOO", [], {})
    assert refused.value.code == "upstream_refused"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        pytest.param("MACD", {"FAST": 1}, "MACD: unknown parameter FAST; expected SHORT, LONG, MID", id="unknown"),
        pytest.param("MA", {"KDJ:N": 1}, "unknown parameter KDJ:N", id="of another model"),
        pytest.param("MA", {"M1": 5, "N": 5}, "M1, N do not go together", id="two forms"),
        pytest.param("KDJ", {"N": 0}, "N of KDJ must be a whole number from 1 to 1000000, not 0", id="zero"),
        pytest.param("KDJ", {"N": -3}, "not -3", id="negative"),
        pytest.param("KDJ", {"N": 2.5}, "not 2.5", id="fraction"),
        pytest.param("KDJ", {"N": "nine"}, "not 'nine'", id="text"),
        pytest.param("KDJ", {"N": ""}, "not ''", id="empty"),
        pytest.param("KDJ", {"N": True}, "not True", id="boolean"),
        pytest.param("KDJ", {"N": math.inf}, "not inf", id="infinite"),
        pytest.param("KDJ", {"N": "nan"}, "not 'nan'", id="nan"),
        pytest.param("KDJ", {"N": 10**400}, "must be a whole number", id="huge"),
        pytest.param("BOLL", {"M": 1}, "M of BOLL must be a whole number from 2", id="deviation of one"),
        pytest.param("BOLL", {"P": 0}, "P of BOLL must be a number above 0", id="no width"),
    ],
)
def test_bad_parameters_are_refused_by_name(name: str, params: Mapping[str, float | str], message: str) -> None:
    with pytest.raises(Refused) as refused:
        calculate(name, wandering(3, 1), params)
    assert message in refused.value.reason
    assert refused.value.code == "upstream_refused"


def test_long_histories_with_long_periods_are_fast_enough() -> None:
    # A loop over the window for every bar would take 10 ** 10 steps, far longer than the timeout.
    bars = flat(*range(1, 200_001))
    assert calculate("MA", bars, {"N": 100_000})["MA"][-1] == pytest.approx(150_000.5)
    assert calculate("KDJ", bars, {"N": 100_000})["K"][-1] == pytest.approx(100)
