"""What a worker does now, and what all of them and the feeder do together. Pure (docs/administration.md)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import UNSET, UnsetType

from qmt_bridge.observation.delays import HOPS, Percentiles, percentiles
from qmt_bridge.observation.recent import Happening, newest
from qmt_bridge.wire.messages import AccountState, FeedStatus, PusherState, trade_state
from qmt_bridge.wire.parts.report import OpenIncident, TargetCounts


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is served; rates are a second, `lag` is seconds of the client that is most behind."""

    clients: int
    topics: int
    messages_rate: float
    frames_rate: float
    bytes_rate: float
    waiting_bytes: int
    slow_clients: int
    lag: float
    gaps_hour: int
    lost_hour: int
    skipped_hour: int


class WorkerState(Load, frozen=True, kw_only=True):
    """One worker."""

    worker: str
    # Host name and process id of the gateway.
    gateway: str
    pid: int
    version: str
    started: int


class WorkerPart(msgspec.Struct, frozen=True):
    """What a worker finds for a survey about states; delays are counts by class (`observation.delays`)."""

    state: WorkerState
    publish_to_worker: dict[int, int]
    worker_to_socket: dict[int, int]
    events: list[Happening]


class FeederState(msgspec.Struct, frozen=True):
    """The feeder as the answer shows it."""

    version: str
    instance: str
    started: int
    topics: int
    upstream: int
    published: int
    published_rate: float
    refused: int
    unkept: int


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """The store as it has last reported, `age` seconds ago; not `up`: it is silent. See `wire.history.StoreStatus`."""

    up: bool
    age: float
    version: str
    failure: str | None
    topics: int
    stored: int
    left_out: int
    waiting: int
    lag: float
    size: int
    free: int
    days: list[str]


class AlertsState(msgspec.Struct, frozen=True, kw_only=True):
    """The alerts as they have last reported, likewise. See `wire.reports.AlertsStatus`."""

    up: bool
    age: float
    version: str
    open: list[OpenIncident]
    targets: list[TargetCounts]


class FeederPart(FeederState, frozen=True):
    """What the feeder finds (`feeder.publisher.Publisher.state`)."""

    store: StoreState | None = None
    alerts: AlertsState | None = None
    markets: dict[str, float] = {}
    exchange_to_callback: dict[int, int] = {}
    callback_to_publish: dict[int, int] = {}
    events: list[Happening] = []


class Totals(Load, frozen=True, kw_only=True):
    """The sums over all workers that have answered; `lag` is the largest, `topics` the feeder's."""

    workers: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `/api/state`; what follows `markets` is for those that may see all."""

    time: int
    version: str
    full: bool
    complete: bool
    missing: list[str]
    feed: str
    reason: str | None
    since: int
    source: str | None
    simulated: bool | None
    epoch: int
    trade: str | None
    # By market: seconds since its newest tick or depth came to the feeder.
    markets: dict[str, float]
    sdk: str | UnsetType = UNSET
    call: str | UnsetType | None = UNSET
    call_age: float | UnsetType = UNSET
    journal: str | UnsetType | None = UNSET
    journal_note: str | UnsetType | None = UNSET
    accounts: list[AccountState] | UnsetType = UNSET
    pushers: list[PusherState] | UnsetType = UNSET
    feeder: FeederState | UnsetType | None = UNSET
    # None: there is none that reports.
    store: StoreState | UnsetType | None = UNSET
    alerts: AlertsState | UnsetType | None = UNSET
    totals: Totals | UnsetType = UNSET
    workers: list[WorkerState] | UnsetType = UNSET
    # By hop.
    latency: dict[str, Percentiles] | UnsetType = UNSET
    events: list[Happening] | UnsetType = UNSET


def state(
    parts: Mapping[str, WorkerPart],
    feeder: FeederPart | None,
    status: FeedStatus | None,
    absence: str,
    missing: list[str],
    time_ms: int,
    version: str,
    *,
    full: bool,
) -> State:
    """Return the state of everything; `status` is the newest heartbeat, `absence` why there is none."""
    head = State(
        time=time_ms,
        version=version,
        full=full,
        complete=not missing,
        missing=missing,
        feed="down" if status is None else status.state,
        reason=absence if status is None else status.reason,
        since=0 if status is None else status.since,
        source=None if status is None else status.source,
        simulated=None if status is None else status.simulated,
        epoch=0 if status is None else status.epoch,
        trade=None if status is None else trade_state(status.accounts),
        markets={} if feeder is None else feeder.markets,
    )
    if not full:
        return head
    workers = [part.state for _, part in sorted(parts.items())]
    nothing: dict[int, int] = {}
    of_feeder = [nothing, nothing] if feeder is None else [feeder.exchange_to_callback, feeder.callback_to_publish]
    counted = [
        *([each] for each in of_feeder),
        [part.publish_to_worker for part in parts.values()],
        [part.worker_to_socket for part in parts.values()],
    ]
    events = [] if feeder is None else feeder.events
    return msgspec.structs.replace(
        head,
        sdk="" if status is None else status.sdk,
        call=None if status is None else status.call,
        call_age=0.0 if status is None else status.call_age,
        journal=None if status is None else status.journal,
        journal_note=None if status is None else status.journal_note,
        accounts=[] if status is None else list(status.accounts),
        pushers=[] if status is None else list(status.pushers),
        feeder=None if feeder is None else msgspec.convert(feeder, FeederState, from_attributes=True),
        store=None if feeder is None else feeder.store,
        alerts=None if feeder is None else feeder.alerts,
        totals=_totals(workers, feeder),
        workers=workers,
        latency={hop: percentiles(*each) for hop, each in zip(HOPS, counted, strict=True)},
        events=newest([*events, *(event for part in parts.values() for event in part.events)]),
    )


def _totals(workers: list[WorkerState], feeder: FeederPart | None) -> Totals:
    def total(name: str) -> float:
        each: list[float] = [getattr(worker, name) for worker in workers]
        return round(sum(each), 1)

    topics = max((worker.topics for worker in workers), default=0) if feeder is None else feeder.topics
    return Totals(
        workers=len(workers),
        topics=topics,
        lag=max((worker.lag for worker in workers), default=0.0),
        clients=int(total("clients")),
        messages_rate=total("messages_rate"),
        frames_rate=total("frames_rate"),
        bytes_rate=total("bytes_rate"),
        waiting_bytes=int(total("waiting_bytes")),
        slow_clients=int(total("slow_clients")),
        gaps_hour=int(total("gaps_hour")),
        lost_hour=int(total("lost_hour")),
        skipped_hour=int(total("skipped_hour")),
    )
