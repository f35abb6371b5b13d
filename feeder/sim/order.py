"""Orders and positions of the invented account. Pure; amounts are whole fen (0.01 yuan)."""

from __future__ import annotations

from dataclasses import dataclass

from feeder.sim.constants import (
    DIRECTION_FLAG_LONG,
    OFFSET_FLAG_CLOSE,
    OFFSET_FLAG_OPEN,
    ORDER_UNREPORTED,
    STOCK_BUY,
    STOCK_SELL,
)


@dataclass(slots=True)
class Position:
    """Shares of one code; amounts in fen."""

    can_use: int
    # What the shares cost with fees and without.
    cost: int
    opened: int
    # Price at which they were last published, so that published positions add up to the published asset.
    last: int
    yesterday: int
    frozen: int = 0
    # Bought today, to be sold from tomorrow on.
    on_road: int = 0

    @property
    def volume(self) -> int:
        return self.can_use + self.frozen + self.on_road

    @property
    def value(self) -> int:
        return self.volume * self.last


@dataclass(slots=True)
class Order:
    """One limit order; amounts in fen."""

    id: int
    seq: int
    time: int
    code: str
    buy: bool
    volume: int
    limit: int
    status: int = ORDER_UNREPORTED
    # The exchange's number, given when it is reported.
    sysid: str = ""
    traded: int = 0
    amount: int = 0
    charged: int = 0
    frozen: int = 0
    # Error id and message.
    rejection: tuple[int, str] | None = None

    @property
    def remaining(self) -> int:
        return self.volume - self.traded

    def fee(self, amount: int) -> int:
        """Return the fees in fen on `amount` so far: 0.025 %, at least 5 yuan an order; stamp duty 0.05 % on a sale."""
        return max(500, amount * 25 // 100_000) + (0 if self.buy else amount * 5 // 10_000)

    @property
    def reference(self) -> dict[str, object]:
        return {"order_id": self.id, "strategy_name": "simulator", "order_remark": f"sim-{self.seq}"}

    @property
    def terms(self) -> dict[str, object]:
        """Return the fields that order and trade events share."""
        return {
            **self.reference,
            **instrument(self.code),
            "stock_code": self.code,
            "order_sysid": self.sysid,
            "order_type": STOCK_BUY if self.buy else STOCK_SELL,
            "direction": DIRECTION_FLAG_LONG,
            "offset_flag": OFFSET_FLAG_OPEN if self.buy else OFFSET_FLAG_CLOSE,
        }


def instrument(code: str) -> dict[str, object]:
    """Return the fields that name an instrument in order, trade and position events."""
    number, _, market = code.rpartition(".")
    return {"secu_account": "A000000000" if market == "SH" else "0000000000", "instrument_name": f"模拟{number}"}
