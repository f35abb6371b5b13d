"""Formula: the values of one formula over the bars of one code of the invented market. Pure."""

from __future__ import annotations

from feeder.sim.indicators import calculate
from feeder.sim.market import Bar, Market, Record
from qmt_bridge.wire.topics import FormulaSpec


class Formula:
    """A formula over the bars of one code: first of all bars asked for (dbt 0), then of the newest (dbt 1).

    When a bar has ended, its last values come once more with the first ones of the next bar.
    """

    def __init__(self, market: Market, spec: FormulaSpec) -> None:
        self.code = spec.stock_code
        self._market = market
        self._spec = spec
        self._bars: list[Bar] = []

    def value(self, now: int) -> Record:
        """Return the next body; raise `Refused` if formula, period, count or parameters are not known."""
        spec, known = self._spec, self._bars
        bar = self._market.bar(self.code, spec.period, now) if known else None
        if bar is not None and bar["time"] == known[-1]["time"]:
            known[-1] = bar
        else:
            self._bars = self._market.bars(self.code, spec.period, now, spec.count)
        since = known[-1]["time"] if known else 0
        fresh = sum(bar["time"] >= since for bar in self._bars)
        outputs = calculate(spec.formula_name, self._bars, spec.params)
        return {
            "formula_name": spec.formula_name,
            "stock_code": self.code,
            "data": {
                "dbt": 1 if known else 0,
                "timelist": [bar["time"] for bar in self._bars[-fresh:]],
                "outputs": {name: values[-fresh:] for name, values in outputs.items()},
            },
        }
