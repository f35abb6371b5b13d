"""Checks of the feeder that answers: its state, its trade journal, its accounts, and the age of its ticks."""

from __future__ import annotations

from collections.abc import Sequence

from qmt_bridge.commands.doctor.findings.finding import Finding, lasted
from qmt_bridge.commands.doctor.findings.pushers import serves_pushers
from qmt_bridge.wire.messages import FeedStatus, trade_state

# A tick may be as old as the interval between snapshots. A tick from the future shows that this clock is late.
TICK_AGE_MS = (-1000.0, 5000.0)
# A larger age does not come from a clock: the market is closed.
CLOSED_AGE_MS = 600_000.0
# A call into xtquant takes milliseconds. One that has run for so many seconds is worth a look.
LONG_CALL = 5.0


def feeder(status: FeedStatus | None, unheard: str | None, version: str, source: str, refused: str = "") -> Finding:
    """Compare the feeder that answers with the installed `version` and the setting `source`.

    `unheard` says why nothing can be received, `refused` why there is no connection to what answers.
    """
    if refused:
        said, _, advice = refused.partition(": ")
        return Finding("feeder", "fail", said, advice or "look at curve_dir on both machines")
    if unheard is not None:
        return Finding(
            "feeder", "warn", f"not checked: {unheard}", "see curve_dir, or find the program that uses these addresses"
        )
    if status is None:
        return Finding("feeder", "ok", "none runs at these addresses")
    kind = "SIMULATED data, " if status.simulated else ""
    state = status.state + lasted(status.since, status.time) + (f" ({status.reason})" if status.reason else "")
    said = f"source {status.source}, {kind}state {state}, {status.topics} topics, version {status.version or 'unknown'}"
    if status.sdk:
        said += f", xtquant {status.sdk}"
    if status.call_age >= LONG_CALL:
        said += f", {status.call} has not returned for {status.call_age:.0f} s"
    if status.state in ("down", "refused"):
        if serves_pushers(status.source):
            return Finding("feeder", "fail", said, "see the line `pushers`, and the feeder's log")
        return Finding("feeder", "fail", said, "see the lines `terminal` and `token`, and the feeder's log")
    if status.call_age >= LONG_CALL:
        return Finding("feeder", "warn", said, "see the terminal; after xt_hang seconds the feeder is replaced")
    if status.state != "up":
        return Finding("feeder", "warn", said, "see the feeder's log")
    # A feeder that runs from a folder without an installed package has no version.
    if status.version not in ("", version):
        return Finding("feeder", "warn", f"{said}, but installed is {version}", "start it again")
    if source not in ("auto", status.source):
        return Finding("feeder", "warn", f"{said}, but the setting is {source}", "start it again")
    return Finding("feeder", "ok", said)


def journal(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers can write its trade journal."""
    if status.journal is not None:
        said = f"the feeder cannot write it: {status.journal}; trade events are sent, but are kept in its memory only"
        return Finding("journal", "fail", said, "free space on its disk or restore the file, and only then stop it")
    if status.journal_note is not None:
        said = f"is written, but {status.journal_note}"
        return Finding("journal", "warn", said, "qmt-bridge journal verify --file FILE says what is damaged")
    return Finding("journal", "ok", f"is written; the newest trade event is {status.trade_seq}")


def parts(status: FeedStatus) -> Finding:
    """Judge whether the store and the alerts report to the feeder that answers."""
    silent = [name for name, state in status.parts.items() if state == "silent"]
    if silent:
        said = f"no report to the feeder for more than 5 s: {', '.join(silent)}"
        return Finding("parts", "warn", said, "see the log, and start the process again; `up` replaces it by itself")
    if not status.parts:
        return Finding("parts", "ok", "neither a store nor alerts report to the feeder")
    return Finding("parts", "ok", f"report to the feeder: {', '.join(status.parts)}")


def trade(status: FeedStatus) -> Finding:
    """Judge whether the feeder that answers gets the trade events of its accounts."""
    if not status.accounts:
        return Finding("trade events", "ok", "the feeder serves no accounts")
    said = "; ".join(
        f"{account.account} ({account.type}) is {account.state}{lasted(account.since, status.time)}"
        + (f": {account.reason}" if account.reason else "")
        for account in status.accounts
    )
    other = "see the line `pushers`, and the feeder's log" if serves_pushers(status.source) else "see the feeder's log"
    has_terminal = "xtquant" in status.source.split("+")
    match trade_state(status.accounts):
        case "down":
            advice = "log in to the terminal; check xt_userdata and xt_accounts" if has_terminal else other
            return Finding("trade events", "fail", said, advice)
        case "waiting":
            advice = "wait for the terminal, or see the feeder's log" if has_terminal else other
            return Finding("trade events", "warn", said, advice)
    return Finding("trade events", "ok", said)


def trade_access(trouble: str, is_open: bool) -> Finding:
    """Judge whether this user reaches the trade events of the feeder, and whether every user does."""
    if trouble:
        said, _, advice = trouble.partition(": ")
        return Finding("trade access", "warn", said, advice or "see trade_addr, data_dir and curve_dir")
    if is_open:
        said = "open_trade_addr gives trade events and downloads to every user of this machine"
        return Finding("trade access", "warn", said, "leave it out, unless all of them may see your orders")
    return Finding("trade access", "ok", "trade events can be had here, and others need a key or this user")


def clock(ages_ms: Sequence[float], unchecked: str, unneeded: str) -> Finding:
    """Judge this machine's clock by the ages of the newest ticks, in ms; `unchecked` says why there are none."""
    if unneeded:
        return Finding("clock", "ok", f"not needed: {unneeded}")
    if not ages_ms:
        said = f"not checked: only a live tick shows the exchange's time, and there is none: {unchecked}"
        return Finding("clock", "warn", said, "run this again in trading hours, while the feeder runs")
    age = min(ages_ms)
    if age > CLOSED_AGE_MS:
        said = f"not checked: the newest tick is {age / 3_600_000:.1f} hours old, so the market is closed"
        return Finding("clock", "warn", said, "run this again in trading hours")
    advice = "set the clock by NTP (Windows: w32tm /resync)"
    if age < TICK_AGE_MS[0]:
        return Finding("clock", "warn", f"at least {-age / 1000:.1f} s behind the exchange's", advice)
    if age > TICK_AGE_MS[1]:
        said = f"the newest tick is {age / 1000:.1f} s old: this clock is ahead, or the market pauses"
        return Finding("clock", "warn", said, advice)
    return Finding("clock", "ok", f"{age / 1000:.1f} s after the exchange's time of the newest tick")
