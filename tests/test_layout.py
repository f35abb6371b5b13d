"""The layout of the source: allowed imports, the names in the top folder, docstrings. Reads the real files."""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("qmt_bridge", "feeder", "gateway")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]

TOP = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "README.zh-CN.md",
    "SECURITY.md",
    "deploy",
    "docs",
    "feeder",
    "gateway",
    "pyproject.toml",
    "qmt_bridge",
    "tests",
}

WIRE = {"qmt_bridge.wire", "qmt_bridge.closes", "qmt_bridge.errors", "msgspec", "orjson"}
EDGE = WIRE | {
    "qmt_bridge.__version__",
    "qmt_bridge.addresses",
    "qmt_bridge.answering",
    "qmt_bridge.config",
    "qmt_bridge.curve",
    "qmt_bridge.demand",
    "qmt_bridge.handshakes",
    "qmt_bridge.keys",
    "qmt_bridge.observation",
    "qmt_bridge.private",
    "qmt_bridge.process.child",
    "qmt_bridge.process.exit_code",
    "qmt_bridge.process.stop",
    "qmt_bridge.sockets",
    "qmt_bridge.system",
    "qmt_bridge.tokens",
    "zmq",
}
# Modules of the command that the processes use as well.
BESIDE = {"qmt_bridge.log", "qmt_bridge.process"}
# Modules of the standard library that do I/O, read a clock or wait; pure modules get the time as an argument.
IMPURE = set("asyncio logging os pathlib queue selectors socket sqlite3 subprocess threading time".split())
IMPURE.add("qmt_bridge.system.clock")

# The allowed imports: the first pattern that matches a file, the modules that it may import besides the standard
# library, and the modules of the standard library that it must not import. A package includes everything below it.
RULES: list[tuple[str, set[str], set[str]]] = [
    # The contract of both sides.
    ("qmt_bridge/wire/*", WIRE, IMPURE),
    ("qmt_bridge/errors.py", set(), IMPURE),
    ("qmt_bridge/closes.py", {"qmt_bridge.errors"}, IMPURE),
    ("qmt_bridge/keys/exposure.py", {"qmt_bridge.config", "qmt_bridge.errors"}, IMPURE),
    ("qmt_bridge/keys/key.py", {"qmt_bridge.errors", "msgspec"}, IMPURE),
    (
        "qmt_bridge/keys/*",
        {"qmt_bridge.errors", "qmt_bridge.keys", "qmt_bridge.private", "msgspec"},
        {"asyncio", "socket", "threading"},
    ),
    ("qmt_bridge/answering/*", WIRE, IMPURE),
    ("qmt_bridge/demand/*", {"zmq"}, IMPURE),
    # The store: what is pure in it, the database that one file alone opens, and the sockets in two more.
    ("qmt_bridge/store/layout.py", WIRE, IMPURE),
    ("qmt_bridge/store/holes.py", WIRE, IMPURE),
    ("qmt_bridge/store/record_time.py", WIRE, IMPURE),
    ("qmt_bridge/store/seam.py", WIRE, IMPURE),
    ("qmt_bridge/store/filled.py", WIRE | {"qmt_bridge.store"}, IMPURE),
    ("qmt_bridge/store/backfill.py", WIRE | {"qmt_bridge.store"}, IMPURE - {"logging"}),
    ("qmt_bridge/store/database.py", WIRE | {"qmt_bridge.store", "rocksdict"}, IMPURE - {"pathlib"}),
    ("qmt_bridge/store/view.py", {"qmt_bridge.store"}, IMPURE),
    ("qmt_bridge/store/timeline.py", {"qmt_bridge.store"}, IMPURE),
    ("qmt_bridge/store/answers.py", WIRE | {"qmt_bridge.store"}, IMPURE - {"logging"}),
    (
        "qmt_bridge/store/log.py",
        WIRE | {"qmt_bridge.private", "qmt_bridge.store", "qmt_bridge.system"},
        {"asyncio", "threading", "time"},
    ),
    (
        "qmt_bridge/store/*",
        EDGE | {"qmt_bridge.process", "qmt_bridge.reports", "qmt_bridge.store"},
        {"asyncio", "threading"},
    ),
    ("qmt_bridge/private.py", {"qmt_bridge.system.in_use"}, {"asyncio", "threading", "time"}),
    # The alerts: what is pure in them; the sockets are in watch.py, and each target has a thread.
    ("qmt_bridge/alerts/incident.py", set(), IMPURE),
    ("qmt_bridge/alerts/window.py", set(), IMPURE),
    ("qmt_bridge/alerts/hours.py", {"qmt_bridge.errors", "qmt_bridge.wire"}, IMPURE),
    ("qmt_bridge/alerts/notice.py", {"msgspec"}, IMPURE),
    ("qmt_bridge/alerts/rules.py", {"qmt_bridge.alerts", "qmt_bridge.wire"}, IMPURE),
    ("qmt_bridge/alerts/texts.py", {"qmt_bridge.alerts"}, IMPURE),
    ("qmt_bridge/alerts/book.py", {"qmt_bridge.alerts", "msgspec"}, IMPURE),
    ("qmt_bridge/alerts/report.py", {"qmt_bridge.alerts", "qmt_bridge.wire"}, IMPURE),
    (
        "qmt_bridge/alerts/targets/target.py",
        {"qmt_bridge.alerts", "qmt_bridge.errors", "qmt_bridge.keys.exposure", "msgspec"},
        IMPURE,
    ),
    (
        "qmt_bridge/alerts/*",
        EDGE | {"qmt_bridge.alerts", "qmt_bridge.process", "qmt_bridge.reports", "prometheus_client"},
        {"asyncio", "subprocess"},
    ),
    # The forwarder: who may ask what is pure; the proxies and the pages have threads.
    ("qmt_bridge/forward/rights.py", WIRE, IMPURE),
    ("qmt_bridge/forward/questions.py", EDGE | {"qmt_bridge.forward"}, {"asyncio", "socket", "threading"}),
    ("qmt_bridge/forward/heartbeat.py", EDGE | {"qmt_bridge.forward"}, {"asyncio", "socket", "threading"}),
    (
        "qmt_bridge/forward/*",
        EDGE | {"qmt_bridge.forward", "qmt_bridge.store.service", "prometheus_client"},
        {"asyncio", "subprocess"},
    ),
    # Its timer is a thread.
    ("qmt_bridge/system/cutoff.py", set(), {"asyncio", "logging"}),
    # Each request has a thread.
    (
        "qmt_bridge/observation/page_server.py",
        {"qmt_bridge.errors", "qmt_bridge.system.clock"},
        {"asyncio", "subprocess"},
    ),
    ("qmt_bridge/observation/*", {"qmt_bridge.observation", "msgspec"}, IMPURE),
    # The lowest of all: every part may use it.
    ("qmt_bridge/system/*", set(), {"asyncio", "threading"}),
    ("qmt_bridge/tokens/claims.py", {"qmt_bridge.keys.key"}, IMPURE),
    # PyJWT is an optional dependency.
    ("qmt_bridge/tokens/key_set.py", {"qmt_bridge.errors", "qmt_bridge.tokens", "jwt"}, IMPURE),
    (
        "qmt_bridge/tokens/*",
        {
            "qmt_bridge.config",
            "qmt_bridge.errors",
            "qmt_bridge.keys",
            "qmt_bridge.private",
            "qmt_bridge.system",
            "qmt_bridge.tokens",
        },
        {"asyncio", "threading"},
    ),
    # Users can import the client without the other parts.
    (
        "qmt_bridge/client.py",
        {
            "qmt_bridge.reading.backlog",
            "qmt_bridge.clients",
            "qmt_bridge.closes",
            "qmt_bridge.errors",
            "qmt_bridge.frames",
            "qmt_bridge.reading.places",
            "qmt_bridge.reading.reader",
            "qmt_bridge.wire.topics",
            "orjson",
            "websockets",
        },
        set(),
    ),
    (
        "qmt_bridge/clients/stream.py",
        {
            "qmt_bridge.clients.bookmark",
            "qmt_bridge.closes",
            "qmt_bridge.errors",
            "qmt_bridge.reading.places",
            "qmt_bridge.wire.topics",
            "orjson",
        },
        IMPURE - {"logging"} | {"random", "ssl"},
    ),
    ("qmt_bridge/clients/trades.py", WIRE, IMPURE),
    ("qmt_bridge/clients/typed.py", WIRE | {"qmt_bridge.clients.trades"}, IMPURE),
    (
        "qmt_bridge/clients/*",
        WIRE | {"qmt_bridge.clients", "qmt_bridge.frames", "qmt_bridge.private", "qmt_bridge.reading", "websockets"},
        {"subprocess"},
    ),
    # A program that imports it needs neither ZeroMQ nor a library of data frames.
    (
        "qmt_bridge/sync.py",
        WIRE | {"qmt_bridge.client", "qmt_bridge.clients", "qmt_bridge.frames"},
        {"subprocess", "socket"},
    ),
    ("qmt_bridge/frames.py", WIRE | {"pandas", "polars"}, IMPURE),
    ("qmt_bridge/reading/places.py", set(), IMPURE | {"random", "ssl"}),
    ("qmt_bridge/reading/stored_topic.py", WIRE, IMPURE | {"random", "ssl"}),
    ("qmt_bridge/reading/reader.py", {"qmt_bridge.reading.backlog", "websockets"}, IMPURE - {"asyncio"}),
    # The client's pure middle.
    ("qmt_bridge/reading/backlog.py", {"qmt_bridge.wire.topics", "msgspec"}, IMPURE | {"random", "ssl"}),
    # The MCP server: what is said is pure; one file imports the official package, which is an optional dependency.
    ("qmt_bridge/mcp/answers.py", {"qmt_bridge.errors", "qmt_bridge.wire", "orjson"}, IMPURE),
    ("qmt_bridge/mcp/bars.py", {"qmt_bridge.wire"}, IMPURE),
    (
        "qmt_bridge/mcp/gateway.py",
        {"qmt_bridge.client", "qmt_bridge.clients", "qmt_bridge.errors"},
        {"socket", "subprocess", "threading"},
    ),
    ("qmt_bridge/mcp/tools.py", {"qmt_bridge.errors", "qmt_bridge.mcp", "msgspec"}, IMPURE),
    (
        "qmt_bridge/mcp/*",
        {"qmt_bridge.__version__", "qmt_bridge.errors", "qmt_bridge.mcp", "mcp", "mcp_types", "msgspec"},
        IMPURE,
    ),
    # Only this command knows both sides; it starts them as processes.
    # The settings of the gateway's workers depend on the socket that it was given.
    (
        "qmt_bridge/commands/run.py",
        {"qmt_bridge", "click", "msgspec", "feeder.app", "gateway.connections.activation", "gateway.server"},
        set(),
    ),
    # Judges facts that it is given; the facts are collected elsewhere.
    (
        "qmt_bridge/commands/doctor/findings/*",
        WIRE
        | {
            "qmt_bridge.commands.doctor.answers",
            "qmt_bridge.commands.doctor.findings",
            "qmt_bridge.keys.exposure.is_loopback",
            "qmt_bridge.process.other_project",
            "qmt_bridge.sockets",
        },
        IMPURE - {"pathlib"},
    ),
    ("qmt_bridge/commands/doctor/answers.py", {"msgspec"}, IMPURE),
    ("qmt_bridge/commands/doctor/report.py", {"qmt_bridge.commands.doctor.findings"}, IMPURE),
    # xtquant is asked in a process of its own, so that a call that hangs can be ended.
    (
        "qmt_bridge/commands/doctor/facts/*",
        EDGE
        | {
            "qmt_bridge.commands.doctor.answers",
            "qmt_bridge.commands.doctor.facts",
            "qmt_bridge.commands.gateway_address.ask_gateway",
            "qmt_bridge.consumer",
            "qmt_bridge.process.other_project",
        },
        {"asyncio", "threading"},
    ),
    (
        "qmt_bridge/commands/doctor/*",
        {
            "qmt_bridge.addresses.endpoint",
            "qmt_bridge.commands.doctor",
            "qmt_bridge.config",
            "qmt_bridge.curve.key_folder.End",
            "qmt_bridge.errors",
            "qmt_bridge.handshakes",
            "qmt_bridge.keys.exposure",
            "qmt_bridge.keys.key_file",
            "qmt_bridge.tokens",
        },
        {"asyncio", "socket", "subprocess", "threading"},
    ),
    # What a terminal shows; its libraries are loaded for a terminal alone.
    (
        "qmt_bridge/commands/terminal/*",
        {"qmt_bridge.config", "qmt_bridge.language", "qmt_bridge.wire.shanghai", "click", "rich", "segno"},
        {"asyncio", "socket"},
    ),
    # What is written for which answers; the questions and the files are elsewhere.
    ("qmt_bridge/commands/init/answers.py", set(), IMPURE),
    ("qmt_bridge/commands/init/settings_file.py", {"qmt_bridge.config"}, IMPURE),
    # Only the names of the sources, and how an account is written, are asked of the feeder.
    (
        "qmt_bridge/commands/init/command.py",
        {"qmt_bridge", "click", "feeder.app", "feeder.xt.trading.accounts"},
        {"asyncio", "threading"},
    ),
    # The texts for people: tables, and how click is told of them.
    ("qmt_bridge/language/wrapping.py", set(), IMPURE),
    (
        "qmt_bridge/language/*",
        {"qmt_bridge.config", "qmt_bridge.language", "click"},
        {"asyncio", "socket", "threading"},
    ),
    # The counters of a load, and what its clients ask for; the sockets are in the client and the crew.
    ("qmt_bridge/commands/load/histogram.py", set(), IMPURE),
    ("qmt_bridge/commands/load/measurement.py", {"qmt_bridge.commands.load.histogram"}, IMPURE),
    ("qmt_bridge/commands/load/load.py", WIRE, IMPURE - {"os"}),
    # One loop over a selector and no asyncio, so that the clients are not the limit; only crews.py starts processes.
    (
        "qmt_bridge/commands/load/crews.py",
        {"qmt_bridge.commands.load", "qmt_bridge.process.stop"},
        {"asyncio", "selectors", "socket", "threading"},
    ),
    (
        "qmt_bridge/commands/load/*",
        WIRE | {"qmt_bridge.commands.load"},
        {"asyncio", "multiprocessing", "subprocess", "threading"},
    ),
    (
        "qmt_bridge/__main__.py",
        {"qmt_bridge.cli", "qmt_bridge.process.other_project", "qmt_bridge.process.start"},
        {"threading", "subprocess"},
    ),
    # Modules that every part uses.
    ("qmt_bridge/process/other_project.py", set(), IMPURE),
    ("qmt_bridge/process/start.py", {"_signal"}, {"threading", "subprocess"}),
    ("qmt_bridge/process/stop.py", set(), {"asyncio", "queue"}),
    ("qmt_bridge/process/pulse.py", set(), IMPURE),
    ("qmt_bridge/process/*", {"qmt_bridge.config", "qmt_bridge.process", "psutil"}, {"asyncio"}),
    # zstd is in the standard library from Python 3.14 on; the feeder reads tapes as well.
    (
        "qmt_bridge/tapes/tape.py",
        WIRE | {"qmt_bridge.private", "qmt_bridge.system.in_use", "backports.zstd", "compression.zstd"},
        {"asyncio", "threading", "time"},
    ),
    # pyarrow is an optional dependency.
    ("qmt_bridge/tapes/parquet.py", WIRE | {"qmt_bridge.private", "qmt_bridge.tapes", "pyarrow"}, {"asyncio"}),
    ("qmt_bridge/commands/bench.py", {"qmt_bridge", "psutil", "uvloop"}, set()),
    ("qmt_bridge/commands/supervisor.py", {"qmt_bridge", "msgspec", "psutil", "zmq"}, {"asyncio", "threading"}),
    # Bare sockets: the timeout of urllib begins anew with every byte.
    (
        "qmt_bridge/commands/gateway_address.py",
        {"qmt_bridge.config", "qmt_bridge.keys.exposure", "qmt_bridge.process.stop"},
        {"asyncio", "threading", "urllib"},
    ),
    ("qmt_bridge/*", {"qmt_bridge", "click", "msgspec", "orjson", "platformdirs", "websockets", "zmq"}, set()),
    # The feeder's pure middle.
    ("feeder/registry.py", WIRE | {"feeder.unplaced", "qmt_bridge.answering", "qmt_bridge.observation"}, IMPURE),
    ("feeder/unplaced.py", set(), IMPURE),
    # No sockets and no clock; its own thread reads the journal.
    (
        "feeder/answers.py",
        WIRE
        | {
            "feeder.events",
            "feeder.histories",
            "feeder.journal",
            "feeder.listing",
            "feeder.registry",
            "feeder.roll",
            "feeder.source",
            "qmt_bridge.answering",
        },
        IMPURE - {"logging", "sqlite3"},
    ),
    ("feeder/histories.py", WIRE | {"feeder.registry", "feeder.source", "qmt_bridge.answering"}, IMPURE - {"logging"}),
    # Who surveys whom, what is listed then, and what the feeder has seen of itself.
    ("feeder/roll.py", WIRE | {"qmt_bridge.answering"}, IMPURE),
    ("feeder/listing.py", WIRE | {"feeder.registry"}, IMPURE),
    ("feeder/reports.py", WIRE | {"qmt_bridge.answering"}, IMPURE),
    ("feeder/metrics/parts.py", WIRE | {"prometheus_client"}, IMPURE),
    ("feeder/metrics/*", EDGE | {"feeder", "prometheus_client"}, {"asyncio"}),
    ("feeder/observed.py", WIRE | {"feeder.registry", "qmt_bridge.observation"}, IMPURE),
    # What pushers say and what becomes of it is pure; one thread has a loop with all their connections.
    ("feeder/push/lines.py", set(), IMPURE),
    ("feeder/push/message.py", WIRE, IMPURE),
    ("feeder/push/spoken.py", WIRE | {"feeder.push.message"}, IMPURE),
    ("feeder/push/offer.py", WIRE | {"feeder.push.message", "feeder.push.spoken"}, IMPURE),
    ("feeder/push/route.py", WIRE | {"feeder.push.message"}, IMPURE),
    ("feeder/push/snapshots.py", WIRE | {"feeder.push.route"}, IMPURE),
    ("feeder/push/conflation.py", WIRE | {"feeder.push.route"}, IMPURE),
    ("feeder/push/identities.py", set(), IMPURE),
    ("feeder/push/standing.py", WIRE | {"feeder.push.message", "feeder.push.offer"}, IMPURE),
    (
        "feeder/push/*",
        EDGE
        | {
            "feeder.composite",
            "feeder.push",
            "feeder.refusals",
            "feeder.source",
            "qmt_bridge.process.holder",
            "qmt_bridge.process.peer",
        },
        {"sqlite3", "subprocess", "time"},
    ),
    # Called on any thread, so it must not use the publisher's sockets.
    (
        "feeder/inbox.py",
        WIRE | {"feeder.events", "feeder.journal", "feeder.source", "feeder.sources.said", "qmt_bridge.system.clock"},
        {"asyncio", "sqlite3"},
    ),
    # What a source says of itself, and how it is called; only one file imports packages of others.
    ("feeder/sources/said.py", WIRE | {"feeder.source", "qmt_bridge.journal_file.MOST_NAME"}, IMPURE),
    ("feeder/sources/settings.py", {"qmt_bridge.config", "qmt_bridge.errors", "qmt_bridge.wire", "msgspec"}, IMPURE),
    # Packages of others run it with pytest, which is no dependency of this one.
    ("feeder/conformance/records.py", WIRE, IMPURE),
    (
        "feeder/conformance/*",
        EDGE | {"feeder.app", "feeder.conformance", "feeder.source", "feeder.sources"},
        {"asyncio", "socket"},
    ),
    (
        "feeder/sources/*",
        EDGE | {"feeder.composite", "feeder.refusals", "feeder.source", "feeder.sources"},
        {"asyncio", "socket"},
    ),
    ("feeder/refusals.py", set(), IMPURE),
    ("feeder/events.py", WIRE, IMPURE),
    ("feeder/xt/normalize.py", WIRE, IMPURE),
    # Only these files may import xtquant.
    ("feeder/xt/*", EDGE | {"feeder.source", "feeder.xt", "xtquant"}, {"asyncio"}),
    ("feeder/sim/simulator.py", EDGE | {"feeder.source", "feeder.sim"}, {"asyncio"}),
    ("feeder/sim/backlog.py", WIRE | {"feeder.sim"}, IMPURE),
    ("feeder/sim/formula.py", WIRE | {"feeder.sim"}, IMPURE),
    # The simulator depends on nothing but seed and time.
    ("feeder/sim/*", {"feeder.sim", "qmt_bridge.errors"}, IMPURE - {"time"}),
    # The file of the trade events, and the thread that alone uses it.
    (
        "feeder/journal/*",
        WIRE
        | {
            "feeder.events",
            "feeder.journal",
            "qmt_bridge.journal_file",
            "qmt_bridge.private",
            "qmt_bridge.system",
        },
        {"asyncio", "socket"},
    ),
    # What a replay plays.
    ("feeder/replay/recording.py", EDGE | {"feeder.source", "qmt_bridge.tapes"}, {"asyncio"}),
    ("feeder/*", EDGE | {"feeder", "qmt_bridge.journal_file"}, {"asyncio"}),
    # The gateway's pure middle.
    ("gateway/hub.py", WIRE | {"gateway.streams"}, IMPURE),
    ("gateway/streams/*", WIRE | {"gateway.streams"}, IMPURE),
    ("gateway/passage.py", {"qmt_bridge.observation"}, IMPURE),
    # Tasks of the event loop answer and ask; sockets, clocks and processes are looked at in one file alone.
    ("gateway/admin/surveys.py", WIRE, IMPURE - {"asyncio", "logging"}),
    ("gateway/admin/administration.py", EDGE | {"gateway"}, {"threading", "sqlite3", "subprocess"}),
    (
        "gateway/admin/watch.py",
        EDGE
        | {"gateway.admin", "gateway.hub", "gateway.session", "gateway.streams", "gateway.subscription", "msgspec"},
        IMPURE - {"asyncio", "qmt_bridge.system.clock"},
    ),
    (
        "gateway/admin/*",
        WIRE
        | {
            "gateway.admin",
            "gateway.session",
            "gateway.streams",
            "gateway.subscription",
            "qmt_bridge.observation",
        },
        IMPURE,
    ),
    # It subclasses uvicorn's WebSocket protocol, which uses websockets.
    (
        "gateway/writer.py",
        EDGE
        | {"gateway.access.browser_headers", "gateway.connections", "gateway.sending.sender", "uvicorn", "websockets"},
        set(),
    ),
    # uvicorn's HTTP protocol is subclassed as well; what a request may be is decided in a pure file.
    (
        "gateway/connections/handshake.py",
        {
            "gateway.access.browser_headers",
            "gateway.access.peers",
            "gateway.connections",
            "gateway.keys.attempts",
            "gateway.keys.entry",
            "qmt_bridge.config",
            "uvicorn",
        },
        set(),
    ),
    ("gateway/connections/opening.py", set(), IMPURE),
    ("gateway/connections/descriptors.py", set(), {"socket", "threading"}),
    # What Windows' loops lack; the loop itself is imported there alone.
    ("gateway/loop/windows.py", {"gateway.loop", "qmt_bridge.system.clock"}, {"threading"}),
    ("gateway/loop/*", {"gateway.loop"}, {"time"}),
    # They take turns on the event loop.
    ("gateway/connections/intake.py", set(), IMPURE - {"asyncio"}),
    ("gateway/connections/arrivals.py", {"gateway.connections.intake"}, IMPURE - {"asyncio"}),
    # Only data.
    ("gateway/counters.py", set(), IMPURE),
    # It sends by tasks of the event loop, and uses its clock.
    (
        "gateway/sending/sender.py",
        WIRE | {"gateway.counters", "gateway.sending", "qmt_bridge.system.clock"},
        IMPURE - {"asyncio", "logging", "qmt_bridge.system.clock"},
    ),
    # Its flushes are planned on the event loop, and it measures the turns.
    ("gateway/sending/flushes.py", {"qmt_bridge.system.clock"}, IMPURE - {"asyncio", "qmt_bridge.system.clock"}),
    # A subscription uses the sender, but not the session.
    ("gateway/subscription.py", WIRE | {"gateway.hub", "gateway.sending", "gateway.streams"}, IMPURE - {"asyncio"}),
    ("gateway/sending/*", WIRE | {"gateway.sending"}, IMPURE),
    ("gateway/keys/presented_key.py", set(), IMPURE),
    ("gateway/keys/table.py", {"qmt_bridge.keys.key"}, IMPURE),
    ("gateway/keys/attempts.py", set(), IMPURE),
    ("gateway/keys/room.py", {"qmt_bridge.keys.key"}, IMPURE),
    # It fetches on a thread, so that the event loop waits for no other machine.
    (
        "gateway/keys/tokens.py",
        {"qmt_bridge.config", "qmt_bridge.errors", "qmt_bridge.keys.key", "qmt_bridge.private", "qmt_bridge.tokens"},
        {"socket"},
    ),
    (
        "gateway/keys/*",
        {
            "gateway.access.peers",
            "gateway.keys",
            "qmt_bridge.config",
            "qmt_bridge.errors",
            "qmt_bridge.keys",
            "qmt_bridge.tokens",
        },
        {"socket", "threading"},
    ),
    (
        "gateway/access/guard.py",
        {"gateway.access", "qmt_bridge.config", "starlette"},
        IMPURE,
    ),
    ("gateway/access/*", {"gateway.access"}, IMPURE),
    ("gateway/contract/frames.py", WIRE, IMPURE),
    (
        "gateway/contract/*",
        WIRE | {"gateway.contract", "gateway.endpoints", "qmt_bridge.__version__"},
        IMPURE,
    ),
    # Files and their URLs; what the pages show comes from the URLs of everybody.
    ("gateway/page/*", {"gateway.page", "starlette"}, {"asyncio", "socket", "threading", "time"}),
    ("gateway/costs/budget.py", set(), IMPURE),
    # pyarrow is an optional dependency; one file imports it, which others import when it is needed.
    ("gateway/http/formats/parquet.py", WIRE | {"gateway.http.formats", "pyarrow"}, IMPURE),
    ("gateway/http/formats/*", WIRE | {"gateway.http.formats", "gateway.sending.view"}, IMPURE),
    ("gateway/links/*", EDGE, {"threading"}),
    ("gateway/costs/shares.py", WIRE, IMPURE),
    ("gateway/costs/slices.py", set(), IMPURE - {"asyncio", "time"}),
    (
        "gateway/server.py",
        EDGE | BESIDE | {"gateway", "prometheus_client", "starlette", "uvicorn", "uvloop"},
        set(),
    ),
    ("gateway/*", EDGE | {"gateway", "qmt_bridge.log", "prometheus_client", "starlette", "uvicorn", "uvloop"}, set()),
]
# The largest number of files in one folder.
MOST_FILES = 16


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of all imports in a file, including dynamic ones and those for type checkers."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from gateway import hub` gives gateway.hub, `from gateway.hub import Hub` gives gateway.hub.Hub.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__") and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def below(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def misplaced(name: str, path: Path) -> list[str]:
    """Return the imports of the file `name` that the rules forbid."""
    allowed, forbidden = next((may, never) for pattern, may, never in RULES if fnmatch.fnmatch(name, pattern))
    return [
        imported
        for imported in imports(path)
        if below(imported, forbidden)
        or not (imported.partition(".")[0] in sys.stdlib_module_names or below(imported, allowed))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_file_imports_only_what_its_rule_allows(name):
    assert misplaced(name, ROOT / name) == []


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        pytest.param("feeder/x.py", "import gateway", ["gateway"], id="feeder-gateway"),
        pytest.param("feeder/x.py", "from gateway.hub import Hub", ["gateway.hub.Hub"], id="from"),
        pytest.param("feeder/x.py", "from qmt_bridge import client", ["qmt_bridge.client"], id="module-from-package"),
        pytest.param("feeder/x.py", "def f():\n import asyncio", ["asyncio"], id="in-a-function"),
        pytest.param("feeder/x.py", "import xtquant.xtdata", ["xtquant.xtdata"], id="xtquant-in-feeder"),
        pytest.param("feeder/x.py", "importlib.import_module('xtquant')", ["xtquant"], id="by-name"),
        pytest.param("feeder/xt/news.py", "from xtquant import xtdata", [], id="xtquant-in-its-place"),
        pytest.param("gateway/x.py", "from feeder.source import Source", ["feeder.source.Source"], id="gateway-feeder"),
        pytest.param("gateway/hub.py", "from time import monotonic", ["time.monotonic"], id="clock-in-the-middle"),
        pytest.param("gateway/hub.py", "import zmq", ["zmq"], id="zmq-in-the-middle"),
        pytest.param("qmt_bridge/wire/x.py", "import zmq, msgspec", ["zmq"], id="zmq-on-paper"),
        pytest.param("qmt_bridge/client.py", "import starlette", ["starlette"], id="client"),
        pytest.param("qmt_bridge/clients/stream.py", "import websockets, time", ["websockets", "time"], id="stream"),
        pytest.param("qmt_bridge/commands/tail.py", "import feeder.app", ["feeder.app"], id="only-the-command"),
        pytest.param(
            "qmt_bridge/commands/run.py", "from feeder import app\nfrom gateway import hub", ["gateway.hub"], id="run"
        ),
        pytest.param("gateway/x.py", "import numpy", ["numpy"], id="no-numpy"),
    ],
)
def test_rules_find_a_forbidden_import(tmp_path, name, source, found):
    path = tmp_path / "x.py"
    path.write_text(source, encoding="utf-8")
    assert misplaced(name, path) == found


@pytest.mark.parametrize("name", [name for name in NAMES if re.search(r"\bPure\b", docstring(ROOT / name))])
def test_module_that_is_called_pure_imports_nothing_impure(name):
    assert [imported for imported in imports(ROOT / name) if below(imported, IMPURE | {"zmq"})] == []


def test_every_rule_applies_to_a_file():
    for pattern, _, _ in RULES:
        assert fnmatch.filter(NAMES, pattern), pattern


@pytest.mark.parametrize("name", NAMES)
def test_module_has_a_docstring(name):
    assert len(docstring(ROOT / name).split()) >= 4


def test_top_folder_has_exactly_the_listed_names():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    names = {path.name for path in ROOT.iterdir()}
    # Editors and tools may leave hidden files, and files that .gitignore names.
    surplus = {name for name in names - TOP if not any(fnmatch.fnmatch(name, item) for item in [".*", *ignored])}
    assert surplus == set()
    assert names >= TOP


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed_and_its_folders_are_small(package):
    assert (ROOT / package / "py.typed").is_file()
    folders = Counter(Path(name).parent.as_posix() for name in NAMES if not name.endswith("__init__.py"))
    assert {folder: count for folder, count in folders.items() if count > MOST_FILES} == {}
    assert folders.keys() <= {Path(name).parent.as_posix() for name in NAMES if name.endswith("__init__.py")}


def room(module: str) -> str:
    """Return the room of a module: its folder, or the module itself at the top of its package."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return f"{package}.{first}" if first else package


def arrows(modules: dict[str, set[str]], of: Callable[[str], str]) -> dict[str, set[str]]:
    """Return which of our modules import which others; `of` maps a module to the name in the graph."""
    found: dict[str, set[str]] = {of(module): set() for module in modules}
    for module, imported in modules.items():
        for name in imported:
            # The import names a module, or a name in one.
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and of(target) != of(module):
                found[of(module)].add(of(target))
    return found


def circle(graph: dict[str, set[str]]) -> tuple[str, ...]:
    """Return the names in one circle; empty if there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return tuple(error.args[1])
    return ()


def modules() -> dict[str, set[str]]:
    """Return the imports of each of our modules, without __init__ files, which only re-export names."""
    names = {name.removesuffix(".py").replace("/", "."): ROOT / name for name in NAMES}
    return {name: set(imports(path)) for name, path in names.items() if not name.endswith("__init__")}


@pytest.mark.parametrize("of", [str, room], ids=["files", "rooms"])
def test_imports_of_files_and_rooms_have_no_circle(of):
    assert circle(arrows(modules(), of)) == ()


def test_circle_is_found():
    graph = arrows({"a.x": {"a.y.name"}, "a.y": {"b.z"}, "b.z": {"a.x"}, "a.w": {"json"}}, str)
    assert graph["a.w"] == set()
    assert set(circle(graph)) == {"a.x", "a.y", "b.z"}
    assert set(circle(arrows({"a.r.x": {"a.s.y"}, "a.s.y": set(), "a.s.z": {"a.r.x"}}, room))) == {"a.r", "a.s"}


def test_no_file_has_a_meaningless_name():
    empty = {"utils", "util", "helper", "helpers", "manager", "common", "core", "misc", "base"}
    assert [name for name in NAMES if Path(name).stem in empty] == []


ARCHITECTURE = ROOT / "docs" / "architecture.md"
ROOMS_MARKS = ("<!-- rooms -->", "<!-- /rooms -->")


def drawing(graph: dict[str, set[str]]) -> str:
    """Return the rooms of a graph as Markdown: for each package its own arrows, and its imports from the others."""
    parts = []
    for package in sorted({name.partition(".")[0] for name in graph}):
        lines = [f"### {package}", "", "```mermaid", "flowchart TD"]
        used = set()
        for name in sorted(name for name in graph if name.partition(".")[0] == package):
            own = sorted(target for target in graph[name] if target.partition(".")[0] == package)
            used |= graph[name] - set(own)
            # A room without arrows is drawn too.
            targets = " & ".join(own)
            lines.append(f"    {name} --> {targets}" if own else f"    {name}")
        others = ", ".join(f"`{name}`" for name in sorted(used)) or "nothing"
        lines += ["```", "", f"Uses of the other packages: {others}."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def drawn(text: str) -> str:
    """Return the text between the marks of the rooms."""
    begin, end = ROOMS_MARKS
    return text.partition(begin)[2].partition(end)[0].strip()


def test_architecture_draws_the_present_imports():
    assert drawn(ARCHITECTURE.read_text(encoding="utf-8")) == drawing(arrows(modules(), room)), "run `make rooms`"


def test_drawing_shows_rooms_arrows_and_other_packages():
    text = drawing({"a.x": {"a.y", "b.z"}, "a.y": set(), "b.z": set()})
    assert "    a.x --> a.y\n    a.y\n" in text
    assert "Uses of the other packages: `b.z`." in text
    assert text.count("```mermaid") == 2


def redraw() -> None:
    """Write the present rooms into docs/architecture.md."""
    begin, end = ROOMS_MARKS
    head, _, rest = ARCHITECTURE.read_text(encoding="utf-8").partition(begin)
    tail = rest.partition(end)[2]
    new = f"{head}{begin}\n\n{drawing(arrows(modules(), room))}\n\n{end}{tail}"
    ARCHITECTURE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    redraw()
