"""One run of the alerts: look, and tell what is new to every target, until it is stopped (docs/alerts.md)."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from qmt_bridge import __version__
from qmt_bridge.alerts import hours
from qmt_bridge.alerts.book import Book, Plan
from qmt_bridge.alerts.disk import Disk
from qmt_bridge.alerts.gateway import Fetch, Gateway
from qmt_bridge.alerts.notice import Notice
from qmt_bridge.alerts.report import Reported
from qmt_bridge.alerts.rules import RULES, Limits
from qmt_bridge.alerts.targets import mail, webhook
from qmt_bridge.alerts.targets.sender import Deliver, Sender
from qmt_bridge.alerts.targets.target import PACE, Kind, Target, check_url
from qmt_bridge.alerts.watch import Watch
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.process.stop import Stop
from qmt_bridge.reports.reporter import LINGER_MS, Reporter
from qmt_bridge.system import clock
from qmt_bridge.wire.parts.report import Report

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
# Seconds for what waits at the end: messages, and what is to be kept. It is less than the supervisor waits.
END_SECONDS = 4.0


def deliveries(config: Config) -> dict[str, tuple[Deliver, bool, float]]:
    """Return for each target of the settings how it is sent to, whether messages are joined, and the pause between two.

    Raise `ConfigError`, which never shows a URL or a secret.
    """
    found: dict[str, tuple[Deliver, bool, float]] = {}
    webhooks: tuple[tuple[Kind, str, str], ...] = (
        ("wecom", config.alerts_wecom, ""),
        ("dingtalk", config.alerts_dingtalk, config.alerts_dingtalk_secret),
        ("feishu", config.alerts_feishu, config.alerts_feishu_secret),
        ("webhook", config.alerts_webhook, ""),
    )
    for kind, url, secret in webhooks:
        if not url:
            if secret:
                raise ConfigError(f"[alerts] {kind}_secret", f"needs {kind} too")
            continue
        check_url(f"[alerts] {kind}", url, plain=kind == "webhook")
        target = Target(kind, url, secret)
        found[kind] = partial(webhook.deliver, target), target.joins, PACE[kind]
    if config.alerts_mail_to or config.alerts_mail_server:
        if not config.alerts_mail_to:
            raise ConfigError("[alerts] mail_to", "no address is given, only a server")
        mailbox = mail.make_mailbox(
            config.alerts_mail_server,
            config.alerts_mail_tls == "starttls",
            config.alerts_mail_user,
            config.alerts_mail_password,
            config.alerts_mail_from,
            config.alerts_mail_to,
        )
        found["mail"] = partial(mail.deliver, mailbox), True, 0.0
    return found


def plan_of(config: Config) -> Plan:
    """Return when what is told; raise `ConfigError`."""
    for name in config.alerts_ignore:
        if name not in RULES:
            raise ConfigError("[alerts] ignore", f"expected some of {', '.join(RULES)}, got {name[:40]!r}")
    limits = Limits(config.alerts_lost, config.alerts_cut, config.alerts_disk_mb, frozenset(config.alerts_ignore))
    return Plan(
        limits,
        config.alerts_after,
        config.alerts_settle,
        config.alerts_repeat,
        hours.read_span(config.alerts_quiet, "[alerts] quiet"),
        hours.read_time(config.alerts_morning, "[alerts] morning"),
        hours.read_days(config.alerts_holidays, "[alerts] holidays"),
        config.alerts_language,
        installation(config),
    )


def installation(config: Config) -> str:
    """Return the name of this installation in messages."""
    return config.alerts_name or socket.gethostname()


def check(config: Config) -> list[str]:
    """Return the names of the targets; raise `ConfigError` for settings with which alerts would not start."""
    plan_of(config)
    return list(deliveries(config))


def run(config: Config, fetch: Fetch, stop: Stop, beat: Callable[[], None] = lambda: None) -> int:
    """Watch and tell until `stop` is set; return the exit code. `fetch` reads pages of the gateway.

    `beat` is called several times a second, so that a supervisor sees that this goes on. Raise `ConfigError` for
    settings and keys that cannot be used, and if there is no target.
    """
    plan, targets = plan_of(config), deliveries(config)
    if not targets:
        raise ConfigError("[alerts]", "no target is given: wecom, dingtalk, feishu, webhook or mail_to")
    disk = Disk(config.data_path)
    kept = disk.load()
    gateway = Gateway(fetch)
    watch = Watch(config, gateway, kept.seen)
    senders = [Sender(name, deliver, joins=joins, pace=pace) for name, (deliver, joins, pace) in targets.items()]
    book = Book(plan, kept, clock.monotonic(), time.time())
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    telling = _Telling(senders, Reporter(context, config))
    disk.start()
    gateway.start()
    for sender in senders:
        sender.start()
    logger.info("alerts started: to %s, %d incidents are open", ", ".join(targets), len(book.open))
    try:
        _watch(watch, book, disk, telling, plan, stop, beat)
    finally:
        deadline = time.monotonic() + END_SECONDS
        gateway.close(0.0)
        for sender in senders:
            sender.close(deadline)
        disk.close(deadline)
        watch.close()
        telling.close(book)
        context.destroy(LINGER_MS)
    return 0


class _Telling:
    """What is told: the targets, which reach people, and the feeder, which shows it on its page and in its metrics."""

    def __init__(self, senders: Sequence[Sender], reporter: Reporter) -> None:
        self._senders = senders
        self._reporter = reporter
        self._reported = Reported(__version__)

    @property
    def unsent(self) -> int:
        """Return how many messages no target took since the start."""
        return sum(counts.failed + counts.dropped for counts in (sender.counts() for sender in self._senders))

    def tell(self, notice: Notice) -> None:
        """Send a message to every target."""
        logger.log(logging.INFO if notice.event in ("recovery", "report") else logging.WARNING, "%s", notice.title)
        self._reported.note(notice)
        for sender in self._senders:
            sender.put(notice)

    def report(self, book: Book, now: float, *, at_once: bool) -> None:
        """Tell the feeder how things are, once a second and `at_once` after news."""
        if at_once or self._reporter.is_due(now):
            self._reporter.send(self._report(book, leaves=False), now)

    def close(self, book: Book) -> None:
        """Tell the feeder that the alerts end."""
        self._reporter.close(self._report(book, leaves=True))

    def _report(self, book: Book, *, leaves: bool) -> Report:
        counts = {sender.name: sender.counts() for sender in self._senders}
        return self._reported.report(book.open, counts, leaves=leaves)


def _watch(
    watch: Watch, book: Book, disk: Disk, telling: _Telling, plan: Plan, stop: Stop, beat: Callable[[], None]
) -> None:
    reported = 0
    while not stop.wait(LOOK_SECONDS):
        beat()
        now, wall = clock.monotonic(), time.time()
        seen = watch.look(now, wall, plan.holidays, disk.free)
        unsent = telling.unsent
        notices = book.look(seen, now, wall, unsent - reported)
        for notice in notices:
            if notice.event == "report":
                reported = unsent
            telling.tell(notice)
        disk.keep(book.kept(watch.seen))
        telling.report(book, now, at_once=bool(notices))
