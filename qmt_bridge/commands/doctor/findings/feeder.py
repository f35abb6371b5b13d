"""Checks of the feeder that answers: its state, its trade journal, its accounts, and the age of its ticks."""

from __future__ import annotations

from collections.abc import Sequence

from qmt_bridge.commands.doctor.findings.finding import Finding
from qmt_bridge.wire.messages import FeedStatus, trade_state

# A tick may be as old as the interval of snapshots; from the future comes none.
TICK_AGE_MS = (-1000.0, 5000.0)
# A larger difference is no error of a clock.
CLOSED_AGE_MS = 600_000.0


def feeder(status: FeedStatus | None, unheard: str | None, version: str, source: str, refused: str = "") -> Finding:
    """Judge the feeder that answers, against our `version` and the setting `source`.

    `unheard` is why none can be heard, `refused` why there is no connection to what answers.
    """
    if refused:
        said, _, advice = refused.partition(": ")
        return Finding("feeder", "fail", said, advice or "look at curve_dir on both machines")
    if unheard is not None:
        return Finding("feeder", "warn", f"not checked: {unheard}", "see curve_dir, or what else uses these addresses")
    if status is None:
        return Finding("feeder", "ok", "none runs at these addresses")
    kind = "SIMULATED data, " if status.simulated else ""
    state = status.state + (f" ({status.reason})" if status.reason else "")
    said = f"source {status.source}, {kind}state {state}, {status.topics} topics, version {status.version or 'unknown'}"
    if status.state == "down":
        return Finding("feeder", "fail", said, "see the line of the terminal or of the token, and the feeder's log")
    if status.state != "up":
        return Finding("feeder", "warn", said, "see the feeder's log")
    # A feeder that was never installed does not know its version.
    if status.version not in ("", version):
        return Finding("feeder", "warn", f"{said}, but installed is {version}", "start it again")
    if source not in ("auto", status.source):
        return Finding("feeder", "warn", f"{said}, but the setting is {source}", "start it again")
    return Finding("feeder", "ok", said)


def journal(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers can write its trade journal."""
    if status.journal is not None:
        said = f"the feeder cannot write it: {status.journal}; trade events go out, but are only in its memory"
        return Finding("journal", "fail", said, "make room on its disk or put the file back, and do not stop it before")
    if status.journal_note is not None:
        said = f"is written, but {status.journal_note}"
        return Finding("journal", "warn", said, "qmt-bridge journal verify --file FILE says what is damaged")
    return Finding("journal", "ok", f"is written; the newest trade event is {status.trade_seq}")


def trade(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers gets the trade events of its accounts."""
    if not status.accounts:
        return Finding("trade events", "ok", "the feeder serves no accounts")
    said = "; ".join(
        f"{account.account} ({account.type}) is {account.state}" + (f": {account.reason}" if account.reason else "")
        for account in status.accounts
    )
    match trade_state(status.accounts):
        case "down":
            return Finding("trade events", "fail", said, "log in to the terminal; check xt_userdata and xt_accounts")
        case "waiting":
            return Finding("trade events", "warn", said, "wait for the terminal, or see the feeder's log")
    return Finding("trade events", "ok", said)


def clock(ages_ms: Sequence[float], unchecked: str, unneeded: str) -> Finding:
    """Judge this machine's clock by the ages of newest ticks, or say why it is `unchecked`."""
    if unneeded:
        return Finding("clock", "ok", f"not needed: {unneeded}")
    if not ages_ms:
        said = f"not checked: only a live tick tells the exchange's time, and there is none: {unchecked}"
        return Finding("clock", "warn", said, "look again in trading hours, while the feeder runs")
    age = min(ages_ms)
    if age > CLOSED_AGE_MS:
        said = f"not checked: the newest tick is {age / 3_600_000:.1f} hours old, so the market is closed"
        return Finding("clock", "warn", said, "look again in trading hours")
    advice = "set the clock by NTP (Windows: w32tm /resync)"
    if age < TICK_AGE_MS[0]:
        return Finding("clock", "warn", f"at least {-age / 1000:.1f} s behind the exchange's", advice)
    if age > TICK_AGE_MS[1]:
        said = f"the newest tick is {age / 1000:.1f} s old: this clock is ahead, or the market pauses"
        return Finding("clock", "warn", said, advice)
    return Finding("clock", "ok", f"{age / 1000:.1f} s after the exchange's time of the newest tick")
