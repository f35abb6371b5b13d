"""A stock account that trades by itself, for the simulator: the events of xttrader's callbacks, invented.

Pure: runs on the caller's thread, time is an argument. Each order has its own random numbers and each event its
own instant, so seed and start decide the events and the size of the steps does not. Money is whole fen (0.01 yuan)
inside, yuan as float outside. Nothing here reaches a broker.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Sequence
from random import Random
from typing import TypeAlias

from feeder.sim.constants import (
    ACCOUNT_STATUS_OK,
    DIRECTION_FLAG_LONG,
    FIX_PRICE,
    MARKETS,
    NAMES,
    ORDER_CANCELED,
    ORDER_JUNK,
    ORDER_PART_CANCEL,
    ORDER_PART_SUCC,
    ORDER_PARTSUCC_CANCEL,
    ORDER_REPORTED,
    ORDER_REPORTED_CANCEL,
    ORDER_SUCCEEDED,
    ORDER_WAIT_REPORTING,
    STOCK,
)
from feeder.sim.order import Order, Position, instrument

Event: TypeAlias = tuple[str, dict[str, object]]
# The course of an order: yields for how many ms to wait before it continues.
_Course: TypeAlias = Generator[int, None, None]

LOT = 100
_DAY_MS = 86_400_000
# China Standard Time, which has no summer time.
_ZONE_MS = 8 * 3_600_000
# If more orders are overdue than both limits allow, none of them is placed: after a long sleep of the machine, no burst
# of orders follows.
_CATCH_UP_ORDERS = 1000
_CATCH_UP_MS = 60_000
# How many codes the account trades, so that each is traded often.
_CODES = 10
# The value of a usual order is at most this (fen). A day of orders must not use up the cash or the shares (T+1).
_ORDER_FEN = 2_000_000
_LEAST_FEN = 1_000_000_000
# How far a limit price is from the market price (permille): beyond it to be filled at once, or away from it to rest.
_EAGER, _PATIENT, _FAR = 10, -10, 300
# How many times the price is compared with the limit before the rest of the order is cancelled.
_ATTEMPTS = 5

_NO_CASH = (-1001, "模拟柜台：可用资金不足")
_BAD_PRICE = (-1002, "模拟柜台：委托价格超出涨跌停范围")
_TOO_LATE = (-1003, "模拟柜台：委托已全部成交，不能撤单")


class SimulatedAccount:
    """An account of invented orders, one each `order_interval_ms` from `start_ms` on, in some of `codes`.

    ``price(code, ms)`` returns the market's price in yuan at a time not after the step's, or None when there is no
    trading; the same question must have the same answer. Times are milliseconds since 1970.
    """

    def __init__(
        self,
        account_id: str,
        seed: int,
        price: Callable[[str, int], float | None],
        codes: Sequence[str],
        order_interval_ms: int,
        start_ms: int,
    ) -> None:
        # An order's number is its time in units of 10 ms.
        if order_interval_ms < 10:
            raise ValueError(f"order_interval_ms must be at least 10, got {order_interval_ms}")
        self._account_id = account_id
        self._seed = seed
        self._price = price
        self._interval = order_interval_ms
        self._start = start_ms
        rng = Random(f"{seed}:codes")
        unique = list(dict.fromkeys(codes))
        self._codes = rng.sample(unique, min(_CODES, len(unique)))
        self._now = start_ms
        self._opened = False
        # The next order to be placed, and the next midnight.
        self._slot = 1
        self._midnight = _next_midnight(start_ms)
        # (due ms, tie-breaker, course of an order)
        self._waiting: list[tuple[int, int, _Course]] = []
        self._ties = 0
        self._seq = 0
        self._budget = max(_LEAST_FEN, _DAY_MS // order_interval_ms * _ORDER_FEN)
        self._cash = self._budget
        self._frozen_cash = 0
        # Money from today's sales: it may be spent today, but withdrawn only tomorrow.
        self._proceeds = 0
        self._positions: dict[str, Position] = {}
        self._events: list[Event] = []

    def step(self, now_ms: int) -> list[Event]:
        """Return the events (type, fields) that are due up to `now_ms`, in order; the first step opens the account.

        Orders that were due in a long pause are left out; those that were already placed are completed.
        """
        if now_ms < self._start:
            return []
        if not self._opened:
            self._opened = True
            self._open()
        self._skip(now_ms)
        while True:
            placed = self._start + self._slot * self._interval
            woken = self._waiting[0][0] if self._waiting else placed
            # At the same instant the day changes first, and orders that wait come before new ones.
            due = min(self._midnight, woken, placed)
            if due > now_ms:
                break
            self._now = due
            if due == self._midnight:
                self._turn_day()
            elif self._waiting and due == woken:
                self._resume(heapq.heappop(self._waiting)[2])
            else:
                if self._codes:
                    self._resume(self._trade(Random(f"{self._seed}:{self._slot}")))
                self._slot += 1
        events, self._events = self._events, []
        return events

    def _skip(self, now_ms: int) -> None:
        reached = (now_ms - self._start) // self._interval
        if reached - self._slot >= max(_CATCH_UP_ORDERS, _CATCH_UP_MS // self._interval):
            self._slot = reached + 1
            # If several midnights have passed, only the last one counts.
            self._midnight = max(self._midnight, _next_midnight(now_ms) - _DAY_MS)

    def _resume(self, course: _Course) -> None:
        wait = next(course, None)
        if wait is not None:
            self._ties += 1
            heapq.heappush(self._waiting, (self._now + wait, self._ties, course))

    def _open(self) -> None:
        rng = Random(f"{self._seed}:positions")
        for code in self._codes:
            bought, share = rng.uniform(0.9, 1.1), rng.uniform(0.5, 1.5)
            last = self._market(code)
            if last is not None:
                volume = max(LOT, int(share * self._budget / len(self._codes)) // last // LOT * LOT)
                cost = round(last * bought) * volume
                self._positions[code] = Position(volume, cost, cost, last, yesterday=volume)
        self._emit("account_status", status=ACCOUNT_STATUS_OK)
        self._publish_asset()
        for code in self._positions:
            self._publish_position(code)

    def _turn_day(self) -> None:
        self._midnight += _DAY_MS
        self._proceeds = 0
        self._positions = {code: held for code, held in self._positions.items() if held.volume}
        for code, held in self._positions.items():
            held.can_use += held.on_road
            held.on_road = 0
            held.yesterday = held.volume
            self._publish_position(code)
        self._publish_asset()

    def _trade(self, rng: Random) -> _Course:
        """Place an order and lead it to its end; which end is decided by `rng`, by the price, and by what is there."""
        fate = rng.choices(("filled", "late", "part", "resting", "rejected"), (55, 6, 14, 17, 8))[0]
        order = self._place(rng, fate)
        if order is None:
            return
        self._emit("async_response", **order.reference, error_msg="", seq=order.seq)
        self._publish_order(order)
        if order.rejection is None:
            self._freeze(order)
        yield rng.randint(5, 30)
        self._advance(order, ORDER_WAIT_REPORTING)
        yield rng.randint(20, 120)
        if order.rejection is not None:
            error_id, message = order.rejection
            self._advance(order, ORDER_JUNK, message)
            self._emit("order_error", **order.reference, error_id=error_id, error_msg=message, seq=order.seq)
            return
        order.sysid = f"S{order.id:010d}"
        self._advance(order, ORDER_REPORTED)
        for volume in _slices(rng, order.volume, fate):
            for _ in range(_ATTEMPTS):
                yield rng.randint(200, 2500)
                market = self._market(order.code)
                if market is not None and (market <= order.limit if order.buy else market >= order.limit):
                    self._fill(order, volume, market)
                    break
            else:
                break
        if not order.remaining:
            if fate == "late":
                yield rng.randint(20, 200)
                self._respond_to_cancel(order, *_TOO_LATE)
            return
        yield rng.randint(500, 4000)
        self._respond_to_cancel(order, 0, "")
        self._advance(order, ORDER_PARTSUCC_CANCEL if order.traded else ORDER_REPORTED_CANCEL)
        yield rng.randint(20, 150)
        self._advance(order, ORDER_PART_CANCEL if order.traded else ORDER_CANCELED)
        self._release(order)

    def _place(self, rng: Random, fate: str) -> Order | None:
        """Return a new order, which knows if it will be rejected; None while there is no trading."""
        code = rng.choice(self._codes)
        worth = rng.randint(_ORDER_FEN // 10, _ORDER_FEN)
        least = rng.randint(1, 2)
        # What there is more of is spent, so that neither runs out.
        buy = rng.random() * (self._cash + self._market_value()) < self._cash
        market = self._market(code)
        if market is None:
            return None
        volume = max(least, worth // (market * LOT)) * LOT
        held = self._positions.get(code)
        if held is None or not held.can_use:
            buy = True
        elif not buy or self._cash < 2 * market * volume:
            buy = False
            volume = min(volume, held.can_use)
        # No part of a single lot can be filled.
        rests = fate == "resting" or (fate == "part" and volume == LOT)
        away = market * (_PATIENT if rests else _FAR if fate == "rejected" else _EAGER) // 1000
        limit = market + away if buy else market - away
        self._seq += 1
        order = Order(self._now // 10 % 2**31, self._seq, self._now // 1000, code, buy, volume, limit)
        cost = limit * volume
        if fate == "rejected":
            order.rejection = _BAD_PRICE
        elif buy and self._cash < cost + order.fee(cost):
            order.rejection = _NO_CASH
        return order

    def _market(self, code: str) -> int | None:
        price = self._price(code, self._now)
        return round(price * 100) if price is not None and price >= 0.01 else None

    def _market_value(self) -> int:
        return sum(held.value for held in self._positions.values())

    def _freeze(self, order: Order) -> None:
        if order.buy:
            amount = order.limit * order.volume
            order.frozen = amount + order.fee(amount)
            self._cash -= order.frozen
            self._frozen_cash += order.frozen
            self._publish_asset()
        else:
            held = self._positions[order.code]
            held.can_use -= order.volume
            held.frozen += order.volume
            self._publish_holding(order.code)

    def _release(self, order: Order) -> None:
        if order.buy:
            self._thaw(order, order.frozen)
            self._publish_asset()
        else:
            held = self._positions[order.code]
            held.can_use += order.remaining
            held.frozen -= order.remaining
            self._publish_holding(order.code)

    def _thaw(self, order: Order, amount: int) -> None:
        order.frozen -= amount
        self._frozen_cash -= amount
        self._cash += amount

    def _fill(self, order: Order, volume: int, market: int) -> None:
        amount = market * volume
        order.amount += amount
        fee = order.fee(order.amount) - order.charged
        order.charged += fee
        order.traded += volume
        held = self._positions.setdefault(order.code, Position(0, 0, 0, market, yesterday=0))
        if order.buy:
            # What the rest may still cost stays frozen: the fees are those of the whole order.
            rest = order.limit * order.remaining
            kept = rest + order.fee(order.limit * order.volume) - order.charged if rest else 0
            self._thaw(order, order.frozen - kept)
            self._cash -= amount + fee
            held.on_road += volume
            held.cost += amount + fee
            held.opened += amount
        else:
            self._cash += amount - fee
            self._proceeds += amount - fee
            held.cost -= held.cost * volume // held.volume
            held.opened -= held.opened * volume // held.volume
            held.frozen -= volume
        self._advance(order, ORDER_PART_SUCC if order.remaining else ORDER_SUCCEEDED)
        self._emit(
            "trade",
            **order.terms,
            # An order has fewer fills than lots, and its number is its own.
            traded_id=f"{order.id:010d}{order.traded // LOT:04d}",
            traded_time=self._now // 1000,
            traded_price=market / 100,
            traded_volume=volume,
            traded_amount=amount / 100,
            commission=fee / 100,
        )
        self._publish_holding(order.code)

    def _respond_to_cancel(self, order: Order, error_id: int, message: str) -> None:
        self._seq += 1
        self._emit(
            "async_cancel_response",
            cancel_result=-1 if error_id else 0,
            order_id=order.id,
            order_sysid=order.sysid,
            seq=self._seq,
            error_msg=message,
        )
        if error_id:
            self._emit(
                "cancel_error",
                order_id=order.id,
                market=MARKETS.get(order.code.rpartition(".")[2], 0),
                order_sysid=order.sysid,
                error_id=error_id,
                error_msg=message,
            )

    def _advance(self, order: Order, status: int, message: str = "") -> None:
        order.status = status
        self._publish_order(order, message)

    def _publish_order(self, order: Order, message: str = "") -> None:
        self._emit(
            "order",
            **order.terms,
            order_time=order.time,
            order_volume=order.volume,
            price_type=FIX_PRICE,
            price=order.limit / 100,
            traded_volume=order.traded,
            traded_price=order.amount / order.traded / 100 if order.traded else 0.0,
            order_status=order.status,
            status_msg=message,
        )

    def _publish_holding(self, code: str) -> None:
        self._publish_position(code)
        self._publish_asset()

    def _publish_position(self, code: str) -> None:
        held = self._positions[code]
        held.last = self._market(code) or held.last
        volume, value = held.volume, held.value
        self._emit(
            "position",
            stock_code=code,
            volume=volume,
            can_use_volume=held.can_use,
            open_price=held.opened / volume / 100 if volume else 0.0,
            market_value=value / 100,
            frozen_volume=held.frozen,
            on_road_volume=held.on_road,
            yesterday_volume=held.yesterday,
            avg_price=held.cost / volume / 100 if volume else 0.0,
            direction=DIRECTION_FLAG_LONG,
            last_price=held.last / 100,
            profit_rate=(value - held.cost) / held.cost if held.cost else 0.0,
            **instrument(code),
            float_profit=(value - held.cost) / 100,
            # For futures only (xttrader.md).
            position_profit=0.0,
            open_date="",
        )

    def _publish_asset(self) -> None:
        value = self._market_value()
        self._emit(
            "asset",
            cash=self._cash / 100,
            frozen_cash=self._frozen_cash / 100,
            market_value=value / 100,
            total_asset=(self._cash + self._frozen_cash + value) / 100,
            fetch_balance=max(0, self._cash - self._proceeds) / 100,
            current_balance=(self._cash + self._frozen_cash) / 100,
        )

    def _emit(self, event: str, **fields: object) -> None:
        data: dict[str, object] = {"account_type": STOCK, "account_id": self._account_id, **fields}
        for field, names in NAMES.items():
            value = data.get(field)
            if isinstance(value, int):
                data[f"{field}_name"] = names[value]
        self._events.append((event, data))


def _slices(rng: Random, volume: int, fate: str) -> list[int]:
    """Return the fills, in whole lots, that an order of `volume` shall have; of a part or resting order not all."""
    lots = volume // LOT
    cuts = sorted(rng.sample(range(1, lots), min(rng.randint(1 if fate == "part" else 0, 3), lots - 1)))
    slices = [(after - before) * LOT for before, after in zip([0, *cuts], [*cuts, lots], strict=True)]
    if fate == "resting":
        return []
    return slices[:-1] if fate == "part" else slices


def _next_midnight(ms: int) -> int:
    return ((ms + _ZONE_MS) // _DAY_MS + 1) * _DAY_MS - _ZONE_MS
