"""The messages, in Chinese and in English. Pure. No key and no whole account number is in what they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from qmt_bridge.alerts import hours
from qmt_bridge.alerts.rules import ABSENT, Finding, Observed, Rule, free_of

Language = Literal["zh", "en"]
Facts = Mapping[str, str | int]
# Characters of what another program says: a reason may be the text of an exception.
_MOST = 300
_MIB = 1024 * 1024

_EVENTS = {
    "zh": {"alert": "告警", "repeat": "仍未恢复", "recovery": "已恢复", "report": "早报", "test": "测试"},
    "en": {"alert": "ALERT", "repeat": "STILL DOWN", "recovery": "RECOVERED", "report": "MORNING", "test": "TEST"},
}
_SIMULATED = {"zh": "【模拟数据】", "en": "[SIMULATED] "}

# The state of a session in words; others are shown as they are.
_STATES = {
    "zh": {
        "up": "正常",
        "down": "断开",
        "stale": "连接正常但没有数据",
        "connecting": "正在连接",
        "refused": "被拒绝",
        "ended": "回放结束",
        "absent": "feeder 进程无响应",
        "gone": "进程无响应",
        "failing": "无法写入",
    },
    "en": {"absent": "the feeder does not answer", "gone": "it does not answer", "failing": "it cannot write"},
}


class Words(NamedTuple):
    """What a rule says: the title of its alert and of its recovery, and a line about the cause."""

    bad: Callable[[str], str]
    well: Callable[[str], str]
    cause: Callable[[Facts], str]


def _state(language: Language, facts: Facts) -> str:
    state, reason = str(facts.get("state", "")), str(facts.get("reason", ""))[:_MOST]
    shown, pushers = _STATES[language].get(state, state), str(facts.get("pushers", ""))[:_MOST]
    if pushers:
        reason = _of_pushers(language, pushers, state, reason)
    if language == "zh":
        return f"状态：{shown}" + (f"（{reason}）" if reason else "")
    return f"state: {shown}" + (f" ({reason})" if reason else "")


def _of_pushers(language: Language, names: str, state: str, reason: str) -> str:
    if reason == "pusher_gone":
        return f"推送程序 {names} 已断开" if language == "zh" else f"the pusher {names} is gone"
    if state == "connecting":
        return f"等待推送程序 {names}" if language == "zh" else f"waiting for the pusher {names}"
    return f"推送程序 {names}：{reason}" if language == "zh" else f"pusher {names}: {reason}"


def _zh_state(facts: Facts) -> str:
    return _state("zh", facts)


def _en_state(facts: Facts) -> str:
    return _state("en", facts)


_WORDS: dict[Language, dict[Rule, Words]] = {
    "zh": {
        "feed": Words(lambda _: "行情中断", lambda _: "行情恢复", _zh_state),
        "restarts": Words(
            lambda _: "feeder 反复重启",
            lambda _: "feeder 不再重启",
            lambda facts: f"最近 10 分钟内启动了 {facts['count']} 次，请查看日志",
        ),
        "account": Words(lambda of: f"交易账号 {of} 断开", lambda of: f"交易账号 {of} 恢复", _zh_state),
        "journal": Words(
            lambda _: "交易事件日志无法写入磁盘",
            lambda _: "交易事件日志恢复写入",
            lambda facts: f"原因：{str(facts.get('reason', ''))[:_MOST]}；期间的委托和成交只在内存中，重启会丢失",
        ),
        "store": Words(lambda _: "当日行情存储停止", lambda _: "当日行情存储恢复", _zh_state),
        "gateway": Words(
            lambda _: "网关无响应", lambda _: "网关恢复", lambda _: "WebSocket 和 HTTP 客户端此时收不到数据"
        ),
        "lost": Words(
            lambda _: "网关丢失行情消息",
            lambda _: "网关不再丢失行情消息",
            lambda facts: f"最近 5 分钟丢失 {facts['count']} 条，网关可能过载",
        ),
        "cut": Words(
            lambda of: f"客户端 {of} 反复被断开",
            lambda of: f"客户端 {of} 不再被断开",
            lambda facts: f"最近 10 分钟被断开 {facts['count']} 次：读得太慢，或请求太多",
        ),
        "disk": Words(
            lambda _: "磁盘空间不足",
            lambda _: "磁盘空间恢复",
            lambda facts: f"剩余 {facts['free']} MiB，下限 {facts['least']} MiB",
        ),
    },
    "en": {
        "feed": Words(lambda _: "market data is down", lambda _: "market data is back", _en_state),
        "restarts": Words(
            lambda _: "the feeder restarts again and again",
            lambda _: "the feeder keeps running",
            lambda facts: f"{facts['count']} starts in the last 10 minutes; see the log",
        ),
        "account": Words(lambda of: f"account {of} is down", lambda of: f"account {of} is back", _en_state),
        "journal": Words(
            lambda _: "the trade journal cannot be written",
            lambda _: "the trade journal is written again",
            lambda facts: f"{str(facts.get('reason', ''))[:_MOST]}; orders and fills are in memory only",
        ),
        "store": Words(lambda _: "the store has stopped", lambda _: "the store is back", _en_state),
        "gateway": Words(
            lambda _: "the gateway does not answer",
            lambda _: "the gateway answers again",
            lambda _: "clients of WebSocket and HTTP get nothing",
        ),
        "lost": Words(
            lambda _: "the gateway loses messages",
            lambda _: "the gateway loses no messages any more",
            lambda facts: f"{facts['count']} lost in the last 5 minutes; it may have too much to do",
        ),
        "cut": Words(
            lambda of: f"client {of} is cut off again and again",
            lambda of: f"client {of} is cut off no more",
            lambda facts: f"{facts['count']} times in the last 10 minutes: it reads too slowly, or asks too much",
        ),
        "disk": Words(
            lambda _: "the disk is nearly full",
            lambda _: "the disk has room again",
            lambda facts: f"{facts['free']} MiB left, the limit is {facts['least']} MiB",
        ),
    },
}


def title(language: Language, event: str, finding: Finding, simulated: bool) -> str:
    """Return the first line of a message about an incident."""
    words = _WORDS[language][finding.rule]
    what = (words.well if event == "recovery" else words.bad)(finding.subject)
    return _titled(language, event, what, simulated)


def body(language: Language, event: str, finding: Finding, began: float, now: float, name: str) -> str:
    """Return the other lines: the cause, since when, and which installation it is. Times in seconds since 1970."""
    lasted = duration(language, now - began)
    lines = [] if event == "recovery" else [_WORDS[language][finding.rule].cause(finding.facts)]
    if language == "zh":
        so_far = "共持续" if event == "recovery" else "已持续"
        lines += [f"开始：{hours.clock_text(began)}，{so_far} {lasted}", f"来源：{name}"]
    else:
        lines += [f"since {hours.clock_text(began)}, for {lasted}", f"from {name}"]
    return "\n".join(lines)


def duration(language: Language, seconds: float) -> str:
    """Return a length of time with its two largest units."""
    whole = max(0, int(seconds))
    units = ((86400, "天", "d"), (3600, "小时", "h"), (60, "分", "min"), (1, "秒", "s"))
    shown: list[str] = []
    for size, zh, en in units:
        count, whole = divmod(whole, size)
        if count or (size == 1 and not shown):
            shown.append(f"{count} {zh if language == 'zh' else en}")
    return " ".join(shown[:2])


def report(language: Language, seen: Observed, least_mb: int, unsent: int, now: float, name: str) -> tuple[str, str]:
    """Return title and lines of the report of the morning: what works and what does not.

    `least_mb` is what the disk must have left, `unsent` the messages that no target took.
    """
    zh = language == "zh"
    lines = [_line(language, *each) for each in _parts(language, seen, least_mb)]
    if unsent:
        said = f"{unsent} 条未能发出" if zh else f"{unsent} were not sent"
        lines.append(_line(language, False, "上次早报以来的告警" if zh else "alerts since the last report", said))
    bad = sum(line.startswith("✗") for line in lines)
    if zh:
        what = f"{bad} 项异常" if bad else "一切正常"
    else:
        what = f"{bad} of {len(lines)} do not work" if bad else "all is well"
    lines.append(f"{hours.clock_text(now)}，来源：{name}" if zh else f"{hours.clock_text(now)}, from {name}")
    return _titled(language, "report", what, seen.simulated), "\n".join(lines)


def test(language: Language, now: float, name: str) -> tuple[str, str]:
    """Return title and lines of a test message."""
    if language == "zh":
        return _titled(language, "test", "收到此消息表示告警可以送达", False), f"{hours.clock_text(now)}，来源：{name}"
    return _titled(language, "test", "this target receives alerts", False), f"{hours.clock_text(now)}, from {name}"


def _titled(language: Language, event: str, what: str, simulated: bool) -> str:
    mark = _SIMULATED[language] if simulated else ""
    shown = _EVENTS[language][event]
    return f"【QMT Bridge {shown}】{mark}{what}" if language == "zh" else f"[QMT Bridge {shown}] {mark}{what}"


def _line(language: Language, works: bool, what: str, said: str) -> str:
    return f"{'✓' if works else '✗'} {what}{'：' if language == 'zh' else ': '}{said}"


def _parts(language: Language, seen: Observed, least_mb: int) -> Sequence[tuple[bool, str, str]]:
    """Return for each part whether it works, its name, and how it is."""
    zh = language == "zh"
    states = _STATES[language]
    found: list[tuple[bool, str, str]] = []
    feed = "行情" if zh else "market data"
    if not seen.feeder_answers or seen.status is None:
        found.append((False, feed, states["absent"]))
    else:
        status = seen.status
        state = states.get(status.state, status.state)
        said = f"{state}（{status.source}）" if zh else f"{state} ({status.source})"
        if status.reason:
            said += f" {status.reason[:_MOST]}"
        found.append((status.state in ("up", "ended"), feed, said))
        for pusher in status.pushers:
            said = states.get(pusher.state, pusher.state) + (f" {pusher.reason[:_MOST]}" if pusher.reason else "")
            found.append((pusher.state == "up", f"{'推送程序' if zh else 'pusher'} {pusher.name}", said))
        for account in status.accounts:
            said = states.get(account.state, account.state) + (f" {account.reason[:_MOST]}" if account.reason else "")
            which = f"{'账号' if zh else 'account'} {account.account} {account.type}"
            found.append((account.state == "up", which, said))
        journal = status.journal
        well = "正常写入" if zh else "written"
        found.append((journal is None, "交易事件日志" if zh else "trade journal", (journal or well)[:_MOST]))
    if seen.store_expected:
        store, name = seen.store, "当日存储" if zh else "store"
        if store is None or seen.store_age > ABSENT:
            found.append((False, name, "无响应" if zh else "does not answer"))
        else:
            said = f"{len(store.days)} {'天，' if zh else 'days, '}{store.size // _MIB} MiB"
            found.append((store.failure is None, name, store.failure or said))
    if seen.gateway_expected:
        answers = seen.gateway_answers
        said = ("正常" if answers else "无响应") if zh else ("answers" if answers else "does not answer")
        found.append((answers, "网关" if zh else "gateway", said))
    free = free_of(seen)
    if free is not None:
        found.append((free >= least_mb * _MIB, "磁盘剩余" if zh else "room on the disk", f"{free // _MIB} MiB"))
    return found
