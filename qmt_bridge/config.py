"""Every setting on one screen: defaults, then a TOML file, then environment ``QMT_BRIDGE_*``, then flags.

Read once at the edge (a command, or the ASGI app's start) and handed down; nothing below reads the environment.
"""

from __future__ import annotations

import logging
import os
import re
import tomllib
from collections.abc import Collection, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import platformdirs
from msgspec import Meta

from qmt_bridge import private
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.hints import similar
from qmt_bridge.wire.topics import mask

logger = logging.getLogger(__name__)

ENV_PREFIX = "QMT_BRIDGE_"
# Names the file itself, so it is no setting.
CONFIG_ENV = "QMT_BRIDGE_CONFIG"
# Of the texts for people, which are those of the command and not of a part.
LANG_ENV = "QMT_BRIDGE_LANG"
_NO_SETTINGS = frozenset((CONFIG_ENV, LANG_ENV))
# Those that open something for whoever knows them. A flag would show them to every user of the machine, in the list of
# processes. The URL of a chat robot holds its key.
CREDENTIALS = frozenset(
    (
        *(
            "api_key",
            "push_key",
            "xt_token",
            "alerts_wecom",
            "alerts_dingtalk",
            "alerts_dingtalk_secret",
            "alerts_feishu",
        ),
        *("alerts_feishu_secret", "alerts_webhook", "alerts_mail_password"),
    )
)
# Never shown, neither by repr nor in an error.
SECRETS = CREDENTIALS | {"xt_accounts"}
# Sections of the file: `wecom` in the section `alerts` is the setting `alerts_wecom`.
SECTIONS = ("alerts",)

# Of the feeder: it listens there, and gateways and consumers connect.
ADDRESSES = ("market_addr", "trade_addr", "ask_addr", "trade_ask_addr")
# Of the source push: it listens there too, and not by ZeroMQ.
PUSH_ADDRESS = "push_addr"
# Of a forwarder: it listens there.
FORWARDED = ("forward_market_addr", "forward_trade_addr", "forward_ask_addr", "forward_store_addr")

# What the public qmt-bridge reads under our prefix, and the setting that does the like here.
_FOREIGN = {
    "require_auth_for_data": "require_key",
    "mini_qmt_path": "xt_userdata",
    "qmt_root": "xt_userdata",
    "trading_account_id": "xt_accounts",
    "stock_account_id": "xt_accounts",
    "credit_account_id": "xt_accounts",
    "default_account": "xt_accounts",
    "trading_enabled": "xt_accounts",
    "account_enabled": "xt_accounts",
    "zmq_endpoint": "market_addr",
    "event_zmq_endpoint": "trade_addr",
}
# In double quotes TOML reads their backslashes as escapes.
PATHS = frozenset(("file", "xt_home", "xt_userdata", "data_dir", "curve_dir", "tls_cert", "tls_key", "jwt_jwks"))
_SINGLE_QUOTES = (
    "in double quotes a backslash begins an escape; put paths in single quotes: 'C:\\qmt\\userdata_mini', or write "
    "each backslash twice"
)
# Neither a space of Chinese nor any other letter: U+3000 stands in names of folders.
_CONTROL = re.compile("[\x00-\x1f\x7f]")
# Bytes of a file of settings; the example with every setting has some 20,000.
MOST_BYTES = 1024 * 1024
_MOST_DOTS = 50
_DOTS = re.compile(
    rf"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{_MOST_DOTS}}}""",
)
# Characters of a value that an error shows.
_MOST_SHOWN = 200
# Of the path of a local socket, on Linux and Windows.
_IPC_BYTES = 107
_TCP = re.compile(r"tcp://(\*|[a-zA-Z0-9][\w.-]*|\[[\w:.%]+\]):(\*|\d{1,5})", re.ASCII)

# HOST:PORT, or nothing.
_HTTP_ADDRESS = r"^((\[[0-9A-Fa-f:.]+\]|[\w.-]+):[0-9]{1,5})?\Z"

Positive = Annotated[int, Meta(ge=1)]


class _GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a gateway reads. Each of these classes continues the one before; `Config` has the fields of all."""

    host: Annotated[str, Meta(description="Address on which the gateway listens.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port of the gateway; 0 takes a free one.")] = 8000
    workers: Annotated[int, Meta(ge=1, le=64, description="Number of gateway worker processes.")] = 1
    api_key: Annotated[
        str,
        Meta(description="Key with every scope, 16 or more characters; without any key no client gets trade events."),
    ] = ""
    require_key: Annotated[bool, Meta(description="Ask for the key on the market-data URLs too.")] = False
    open_market_data: Annotated[
        bool, Meta(description="Serve market data without a key to other machines too, and to clients of a proxy.")
    ] = False
    tls_cert: Annotated[
        str, Meta(description="TLS: PEM file of the certificate and its chain; read again when it changes.")
    ] = ""
    tls_key: Annotated[str, Meta(description="TLS: PEM file of the certificate's private key, without a password.")] = (
        ""
    )
    jwt_jwks: Annotated[
        str,
        Meta(description="JWT: file or https URL of the public keys (JWKS) whose tokens are accepted; empty: none."),
    ] = ""
    jwt_issuer: Annotated[str, Meta(description="JWT: claim `iss` that a token must have; needed for tokens.")] = ""
    jwt_audience: Annotated[
        str, Meta(description="JWT: claim `aud` that a token must have or contain; needed for tokens.")
    ] = ""
    jwt_scope_claim: Annotated[
        str, Meta(min_length=1, description='JWT: claim with the scopes, such as "market" or "qmtb:market".')
    ] = "scope"
    jwt_accounts_claim: Annotated[
        str, Meta(description="JWT: claim with the accounts whose trade events a token opens; empty: every account.")
    ] = ""
    behind_proxy: Annotated[
        tuple[str, ...],
        Meta(description='Addresses of proxies that may name their clients, e.g. "127.0.0.1" or "10.0.0.0/24".'),
    ] = ()
    proxy_header: Annotated[
        Literal["x-forwarded-for", "forwarded"],
        Meta(description="Header in which these proxies name the client; any other one is ignored."),
    ] = "x-forwarded-for"
    hosts: Annotated[
        tuple[str, ...],
        Meta(description='Names by which the gateway is reached, e.g. "quotes.example"; IP addresses need none.'),
    ] = ()
    origins: Annotated[
        tuple[str, ...],
        Meta(description='Further sites whose pages may connect, e.g. "https://desk.example"; "*" is any.'),
    ] = ()
    max_connections: Annotated[
        Positive, Meta(description="Open WebSockets a worker accepts; a tenth is kept for those with a key.")
    ] = 5000
    # All clients behind one proxy may have one address.
    max_connections_per_address: Annotated[
        Positive, Meta(description="Open WebSockets without a key that a worker accepts from one address.")
    ] = 5000
    max_topics: Annotated[Positive, Meta(description="Subscriptions that one WebSocket may hold.")] = 6000
    max_rate: Annotated[
        Positive,
        Meta(description="Requests a second that one WebSocket may send; four times that in a burst."),
    ] = 50
    max_code_rate: Annotated[
        Positive,
        Meta(description="Codes a second that one WebSocket may name in requests; four times `max_topics` in a burst."),
    ] = 2000
    max_views: Annotated[
        Positive,
        Meta(
            description="Different lists of `fields`, and depths, that the WebSockets of one address may use at once."
        ),
    ] = 100
    outbox_bytes: Annotated[
        Positive, Meta(description="Bytes that may wait for one slow client before its stream is conflated.")
    ] = 4 * 1024 * 1024
    outbox_total_bytes: Annotated[
        Positive,
        Meta(description="Bytes that may wait for all slow clients of a worker; beyond, the worst ones are aborted."),
    ] = 256 * 1024 * 1024
    lag_target: Annotated[
        float,
        Meta(gt=0, description="Seconds that a frame may spend between write and read; a slower client is conflated."),
    ] = 1.0
    slow_timeout: Annotated[
        float, Meta(gt=0, description="Seconds without any progress after which a slow client is aborted.")
    ] = 60.0
    freeze_timeout: Annotated[
        float,
        Meta(
            ge=0,
            description="Seconds without a sign of life after which a process is killed and started anew; 0 is never.",
        ),
    ] = 15.0
    deflate: Annotated[
        bool,
        Meta(description="Compress for clients that ask for it (permessage-deflate): fewer bytes, more delay."),
    ] = False


class _FeederSettings(_GatewaySettings, frozen=True, kw_only=True):
    """What a feeder reads."""

    source: Annotated[
        Literal["auto", "xtquant", "sim", "replay", "push", "xtquant+push", "sim+push"],
        Meta(description="Where data comes from; auto is xtquant where it can be imported, else sim."),
    ] = "auto"
    file: Annotated[str, Meta(description="replay: the file to play: a tape, or a CSV or CSV.gz of ticks.")] = ""
    speed: Annotated[
        float, Meta(ge=0, description="replay: times the recorded pace; 0 is as fast as consumers take it.")
    ] = 1.0
    delay: Annotated[float, Meta(ge=0, description="replay: seconds from the first subscription to the start.")] = 2.0
    loop: Annotated[bool, Meta(description="replay: start again at the end.")] = False
    sim_seed: Annotated[int, Meta(ge=0, description="sim: the same seed gives the same day.")] = 1
    sim_interval: Annotated[
        float, Meta(ge=0.01, le=60, description="sim: seconds between two snapshots of a code.")
    ] = 3.0
    sim_l2_rate: Annotated[
        float, Meta(gt=0, le=1000, description="sim: orders and trade prints a second and subscribed code.")
    ] = 5.0
    sim_order_interval: Annotated[
        float, Meta(ge=0.01, description="sim: seconds between two new orders of the account.")
    ] = 5.0
    sim_hours: Annotated[
        Literal["always", "exchange"],
        Meta(description="sim: always open, or only in the hours of the exchange."),
    ] = "always"
    push_addr: Annotated[
        str, Meta(description="push: address at which your programs connect; another one than of this machine is TLS.")
    ] = "tcp://127.0.0.1:5560"
    push_key: Annotated[
        str,
        Meta(description="push: key of these programs, 16 or more characters; empty: those of this user connect."),
    ] = ""
    pushers: Annotated[
        tuple[str, ...],
        Meta(description='push: which program may serve what, e.g. "ctp:quote+whole:SF+DF"; empty is any program.'),
    ] = ()
    xt_addr: Annotated[str, Meta(description="xtquant: address of the terminal's market-data port.")] = (
        "127.0.0.1:58610"
    )
    xt_token: Annotated[
        str, Meta(description="xtquant: token of the data service, which then stands in for the terminal's quotes.")
    ] = ""
    xt_home: Annotated[
        str, Meta(description="xtquant: the data service's folder; empty is xtdata in the folder of the trade journal.")
    ] = ""
    xt_servers: Annotated[
        tuple[str, ...],
        Meta(description='xtquant: servers of the data service, e.g. "115.231.218.73:55310"; empty is any.'),
    ] = ()
    xt_userdata: Annotated[
        str, Meta(description="xtquant: the terminal's folder userdata_mini; needed for trade events.")
    ] = ""
    xt_accounts: Annotated[
        tuple[str, ...],
        Meta(description='xtquant: accounts whose trade events are served, e.g. "1000000365:STOCK".'),
    ] = ()
    xt_reconcile: Annotated[
        float,
        Meta(
            ge=0,
            description="xtquant: seconds between two checks of a quiet account for what the terminal did not push; "
            "0 turns this off.",
        ),
    ] = 180.0
    xt_single_limit: Annotated[
        Positive,
        Meta(description="xtquant: single-instrument subscriptions; ticks beyond come out of the whole market."),
    ] = 50
    xt_silence: Annotated[
        float,
        Meta(
            ge=0,
            description="xtquant: seconds that a trading market may say nothing before it is stale; 0 turns this off.",
        ),
    ] = 30.0
    # Longer than any call is known to take: connecting to one address, which the system gives up after some 20 s, and
    # the holidays, which the terminal may have to fetch. Opening the data service has a limit of its own.
    xt_hang: Annotated[
        float,
        Meta(
            ge=0,
            description="xtquant: seconds until a call that does not return ends the feeder, to start anew; 0: never.",
        ),
    ] = 60.0
    xt_download_timeout: Annotated[
        float, Meta(gt=0, description="xtquant: seconds without progress after which a download is given up.")
    ] = 60.0
    xt_download_queue: Annotated[
        Positive, Meta(description="xtquant: downloads that may wait for the running ones to end.")
    ] = 16
    max_depths: Annotated[
        Positive, Meta(description="Level-2 depth subscriptions (l2_thousand) that are made at the source.")
    ] = 1000
    max_formulas: Annotated[Positive, Meta(description="Formula subscriptions that are made at the source.")] = 1000
    grace: Annotated[
        float, Meta(ge=0, description="Seconds that a topic stays subscribed after its last subscriber left.")
    ] = 5.0
    journal_days: Annotated[Positive, Meta(description="Days for which trade events can be replayed.")] = 30
    # A busy month is far below; it bounds what a source that has gone mad writes on the disk.
    journal_max_mb: Annotated[
        int, Meta(ge=0, description="MiB that the trade journal may fill, oldest events go first; 0 is any number.")
    ] = 1024
    metrics_addr: Annotated[
        str,
        Meta(
            pattern=_HTTP_ADDRESS,
            description="Address of the feeder's own metrics for Prometheus, without a key; empty: none.",
        ),
    ] = "127.0.0.1:8001"
    data_dir: Annotated[
        str, Meta(description="Folder of the trade journal, the store and the API keys; empty is the user's own.")
    ] = ""


class _StoreSettings(_FeederSettings, frozen=True, kw_only=True):
    """What a store reads."""

    store: Annotated[
        tuple[str, ...],
        Meta(
            description='Topics to store whether subscribed or not, e.g. "whole/SH/", or a file of codes; what others '
            "subscribe is stored too."
        ),
    ] = ()
    backfill: Annotated[
        bool,
        Meta(
            description="Complete the day of a code that is asked for with `start` from the source's history, never "
            "that of a market."
        ),
    ] = True
    store_days: Annotated[
        int, Meta(ge=0, description="Days that the store keeps, with today; with 0 `up` starts no store.")
    ] = 5
    # Five days of the whole market are some 8 GB.
    store_max_mb: Annotated[
        int, Meta(ge=0, description="MiB that the store may fill, oldest messages go first; 0 is any number.")
    ] = 16384


class _ForwardSettings(_StoreSettings, frozen=True, kw_only=True):
    """What a forwarder reads."""

    forward_market_addr: Annotated[
        str, Meta(min_length=1, description="forward: address at which market data is passed on.")
    ] = "tcp://127.0.0.1:5565"
    forward_trade_addr: Annotated[
        str, Meta(description="forward: address at which trade events are passed on; empty: they are not.")
    ] = "tcp://127.0.0.1:5566"
    forward_ask_addr: Annotated[str, Meta(min_length=1, description="forward: address of questions to the feeder.")] = (
        "tcp://127.0.0.1:5567"
    )
    forward_store_addr: Annotated[
        str, Meta(description="forward: address of questions to the store of the day; empty: none.")
    ] = "tcp://127.0.0.1:5569"
    forward_health_addr: Annotated[
        str,
        Meta(
            pattern=_HTTP_ADDRESS,
            description="forward: address of /readyz, /healthz and /metrics, without a key; empty: none.",
        ),
    ] = "127.0.0.1:8002"


class _WireSettings(_ForwardSettings, frozen=True, kw_only=True):
    """What both ends of a ZeroMQ connection read."""

    market_addr: Annotated[str, Meta(description="ZeroMQ address of market data.")] = "tcp://127.0.0.1:5555"
    ask_addr: Annotated[str, Meta(description="ZeroMQ address of questions about market data.")] = (
        "tcp://127.0.0.1:5557"
    )
    trade_addr: Annotated[
        str, Meta(description="ZeroMQ address of trade events; empty is one that only this user's programs reach.")
    ] = ""
    trade_ask_addr: Annotated[
        str, Meta(description="ZeroMQ address of questions about trade events, and of downloads; empty as above.")
    ] = ""
    store_addr: Annotated[str, Meta(description="ZeroMQ address of questions to the store of the day.")] = (
        "tcp://127.0.0.1:5559"
    )
    open_trade_addr: Annotated[
        bool, Meta(description="Give trade events and downloads to every user of this machine, without keys, over TCP.")
    ] = False
    curve_dir: Annotated[
        str, Meta(description="Folder of CURVE keys (`qmt-bridge keygen`); needed off the machine.")
    ] = ""


class _LogSettings(_WireSettings, frozen=True, kw_only=True):
    """What every part reads for its log."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"], Meta(description="Least serious message to log.")
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="Form of a log line.")] = "text"


class Config(_LogSettings, frozen=True, kw_only=True):
    """All settings. A TOML key is the field's name; the environment name is ``QMT_BRIDGE_<NAME>``.

    The fields of this class itself are what the alerts read. In the file they stand in the section ``[alerts]``.
    """

    alerts_wecom: Annotated[str, Meta(description="WeCom (企业微信): URL of a group robot.")] = ""
    alerts_dingtalk: Annotated[str, Meta(description="DingTalk (钉钉): URL of a group robot.")] = ""
    alerts_dingtalk_secret: Annotated[
        str, Meta(description='DingTalk: secret of the robot ("SEC..."), with which messages are signed.')
    ] = ""
    alerts_feishu: Annotated[str, Meta(description="Feishu (飞书): URL of a group robot.")] = ""
    alerts_feishu_secret: Annotated[
        str, Meta(description="Feishu: secret of the robot, with which messages are signed.")
    ] = ""
    alerts_webhook: Annotated[str, Meta(description="URL of a program of yours, which gets each alert as JSON.")] = ""
    alerts_mail_to: Annotated[tuple[str, ...], Meta(description="Mail: addresses that get the alerts.")] = ()
    alerts_mail_from: Annotated[str, Meta(description="Mail: address of the sender; empty is `mail_user`.")] = ""
    alerts_mail_server: Annotated[
        str, Meta(description='Mail: the server, e.g. "smtp.example.com:465", and the port of its TLS.')
    ] = ""
    alerts_mail_tls: Annotated[
        Literal["tls", "starttls"],
        Meta(description="Mail: TLS from the first byte (port 465), or after the command STARTTLS (port 587)."),
    ] = "tls"
    alerts_mail_user: Annotated[str, Meta(description="Mail: name of the login; empty is none.")] = ""
    alerts_mail_password: Annotated[str, Meta(description="Mail: password or authorization code of the login.")] = ""
    alerts_language: Annotated[Literal["zh", "en"], Meta(description="Language of the messages.")] = "zh"
    alerts_name: Annotated[
        str, Meta(description="Name of this installation in the messages; empty is that of the machine.")
    ] = ""
    alerts_after: Annotated[
        float, Meta(ge=0, description="Seconds that a session, the feeder or the store is down until it is told.")
    ] = 30.0
    alerts_settle: Annotated[
        float, Meta(ge=0, description="Seconds that all must be well again until the recovery is told.")
    ] = 10.0
    alerts_repeat: Annotated[
        float, Meta(ge=0, description="Seconds after which an alert is repeated while nothing has changed; 0 is never.")
    ] = 3600.0
    alerts_quiet: Annotated[
        str,
        Meta(description='Hours of Shanghai in which nothing is sent, e.g. "22:00-07:00"; what lasts is told after.'),
    ] = ""
    alerts_morning: Annotated[
        str, Meta(description="Time of Shanghai at which trading days begin with a report; empty is none.")
    ] = "09:15"
    alerts_holidays: Annotated[
        tuple[str, ...],
        Meta(description='Weekdays without trading, e.g. "20261001"; what the terminal knows is used too.'),
    ] = ()
    alerts_lost: Annotated[
        int,
        Meta(ge=0, description="Messages lost on the way to the gateway in five minutes that are told; 0 is never."),
    ] = 100
    alerts_cut: Annotated[
        int, Meta(ge=0, description="Times that one client is cut off in ten minutes until it is told; 0 is never.")
    ] = 5
    alerts_disk_mb: Annotated[int, Meta(ge=0, description="MiB that the disk must have left; 0 is any number.")] = 1024
    alerts_ignore: Annotated[
        tuple[str, ...],
        Meta(
            description="Rules that are not watched, of feed, restarts, account, journal, store, gateway, lost, cut "
            "and disk."
        ),
    ] = ()

    def __repr__(self) -> str:
        # A secret is never logged, not even by an accidental "%r".
        fields = msgspec.structs.asdict(self).items()
        shown = {name: "***" if value and name in SECRETS else value for name, value in fields}
        return f"Config({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def data_path(self) -> Path:
        """Return the folder for the feeder's own files; it may not exist yet."""
        return Path(self.data_dir) if self.data_dir else platformdirs.user_data_path("qmt-bridge", False)

    @property
    def xt_home_path(self) -> Path:
        """Return the folder of xtquant's data service; it may not exist yet."""
        return Path(self.xt_home) if self.xt_home else self.data_path / "xtdata"


def hidden(config: Config) -> dict[str, str]:
    """Return the texts in the settings that no log may show, each with what may stand in its place."""
    numbers = [account.partition(":")[0] for account in config.xt_accounts]
    secrets = [getattr(config, name) for name in CREDENTIALS]
    # An error of a library may name what follows the host alone.
    secrets += [url.split("://", 1)[1].partition("/")[2] for url in secrets if "://" in url]
    return dict.fromkeys(secrets, "***") | {number: mask(number) for number in numbers}


_HINTS = get_type_hints(Config, include_extras=True)
NAMES: tuple[str, ...] = Config.__struct_fields__


def _own(settings: type[msgspec.Struct], before: type[msgspec.Struct] | None) -> tuple[str, ...]:
    """Return the names of a class of settings without those of the class before it."""
    return settings.__struct_fields__[0 if before is None else len(before.__struct_fields__) :]


GATEWAY = _own(_GatewaySettings, None)
FEEDER = _own(_FeederSettings, _GatewaySettings)
STORE = _own(_StoreSettings, _FeederSettings)
FORWARD = _own(_ForwardSettings, _StoreSettings)
WIRE = _own(_WireSettings, _ForwardSettings)
LOG = _own(_LogSettings, _WireSettings)
ALERTS = _own(Config, _LogSettings)


# What `qmt_bridge.subscribe` takes.
CONNECTION = (*WIRE, "data_dir")


def connection(config: Config) -> dict[str, Any]:
    """Return the settings of whoever connects to a feeder, as `qmt_bridge.subscribe` takes them."""
    return {name: getattr(config, name) for name in CONNECTION}


def env_name(name: str) -> str:
    """Return the environment variable of the setting `name`."""
    return ENV_PREFIX + name.upper()


def description(name: str) -> str:
    """Return the sentence that explains the setting `name`."""
    for meta in get_args(_HINTS[name])[1:]:
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    raise KeyError(name)


def choices(name: str) -> tuple[str, ...]:
    """Return the values that the setting `name` may have; empty if it is not one of a few."""
    kind = get_args(_HINTS[name])[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def default(name: str) -> Any:
    """Return the default of the setting `name`."""
    return Config.__struct_defaults__[NAMES.index(name)]


def load_config(
    file: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    only: Collection[str] | None = None,
) -> Config:
    """Read the settings; raise `ConfigError` that names the first unknown or malformed one.

    `file` is the TOML file (else ``QMT_BRIDGE_CONFIG``, else none), `env` the environment (else the process's),
    `flags` what the command line said, None values being what it did not say. With `only` these settings are read, and
    mistakes in others do not matter, nor does a file that only the environment names and that cannot be read.

    A variable with our prefix that is no setting is none of ours: see `foreign_variables`.
    """
    return Config(**_collect(file, env, flags, only))  # type: ignore[arg-type]  # each has its field's type


def given_settings(
    file: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> set[str]:
    """Return the names of the settings that are not left at their defaults; arguments as for `load_config`."""
    return set(_collect(file, env, flags, None))


def foreign_variables(env: Mapping[str, str] | None = None) -> list[str]:
    """Return a sentence for each variable of `env` with our prefix that is no setting; values are never shown."""
    said = []
    for variable in sorted(os.environ if env is None else env):
        name = variable.removeprefix(ENV_PREFIX).lower()
        if not variable.startswith(ENV_PREFIX) or variable in _NO_SETTINGS or name in _HINTS:
            continue
        nearest = _nearest(name)
        hint = f"; the nearest setting is {nearest} ({env_name(nearest)})" if nearest else ""
        said.append(f"{variable} is no setting of this program and is not used{hint}")
    return said


def _collect(
    file: str | Path | None,
    env: Mapping[str, str] | None,
    flags: Mapping[str, object] | None,
    only: Collection[str] | None,
) -> dict[str, object]:
    env = os.environ if env is None else env
    values: dict[str, object] = {}
    named, file = file, file or env.get(CONFIG_ENV)
    if file:
        try:
            table = _flat(_read_toml(Path(file)), str(file), only)
        except ConfigError as exc:
            if only is None or named:
                raise
            logger.warning("%s; it is not used", exc)
            table = {}
        if any(table.get(name) for name in CREDENTIALS):
            private.warn_if_exposed(Path(file), "a key or a token")
        for name, value in table.items():
            if only is None or name in only:
                values[name] = _convert(name, value, f"{written(name)} in {file}", strict=True)
                if name in PATHS and _CONTROL.search(str(values[name])):
                    raise ConfigError(f"{name} in {file}", f"holds a control character: {_SINGLE_QUOTES}")
    for variable, text in env.items():
        if variable.startswith(ENV_PREFIX) and variable not in _NO_SETTINGS:
            name = variable.removeprefix(ENV_PREFIX).lower()
            if name not in _HINTS or (only is not None and name not in only):
                continue
            if not isinstance(default(name), str | tuple) or choices(name):
                # cmd.exe keeps the space before && in `set QMT_BRIDGE_PORT=8001 && qmt-bridge up`.
                text = text.strip()
            values[name] = _convert(name, text, variable, strict=False)
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = _convert(name, value, f"--{name.replace('_', '-')}", strict=True)
    return values


def _nearest(name: str) -> str | None:
    return _FOREIGN.get(name) or next(iter(similar(name, NAMES)), None)


def export_env(config: Config) -> dict[str, str]:
    """Return the environment that makes a child process read exactly `config`, whatever else it inherits."""
    values = msgspec.structs.asdict(config).items()
    return {env_name(name): ",".join(value) if isinstance(value, tuple) else str(value) for name, value in values}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # It may be a pipe, such as a shell's <(...).
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as exc:
        hint = "; qmt-bridge init writes such a file" if isinstance(exc, FileNotFoundError) else ""
        raise ConfigError(str(path), f"cannot read the settings: {exc.strerror or exc}{hint}") from exc
    if len(content) > MOST_BYTES:
        raise ConfigError(str(path), f"has more than {MOST_BYTES:,} bytes, which no settings have")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ConfigError(
            str(path),
            "not valid TOML: not UTF-8 but UTF-16, as PowerShell's > writes and Notepad calls "
            "Unicode; save it as UTF-8",
        )
    try:
        # Windows' Notepad begins a file with a byte-order mark.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            str(path), f"not valid TOML: line {line} is not UTF-8 but perhaps GBK (ANSI); save the file as UTF-8"
        ) from exc
    if _DOTS.search(text):
        # tomllib takes time and memory that grow with the square of the dots, and no setting has any.
        raise ConfigError(str(path), f"not valid TOML: a name with more than {_MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(str(path), f"not valid TOML: {exc}{_toml_hint(text, str(exc))}") from exc
    except RecursionError as exc:
        raise ConfigError(str(path), "not valid TOML: lists or tables are nested too deep") from exc
    except ValueError as exc:
        # A number of more than 4,300 digits.
        raise ConfigError(str(path), f"not valid TOML: {exc}") from exc


def _flat(table: dict[str, Any], file: str, only: Collection[str] | None) -> dict[str, Any]:
    """Return the settings of a file by their names; raise `ConfigError` for one that stands in the wrong place."""
    found: dict[str, Any] = {}
    for name, value in table.items():
        if name in SECTIONS and isinstance(value, dict):
            for inner, each in value.items():
                if only is None:
                    _check_section(name, inner, file)
                found[f"{name}_{inner}"] = each
            continue
        if name in SECTIONS and only is None:
            raise ConfigError(f"{name} in {file}", f"is a section: write [{name}] on a line of its own")
        if name in _HINTS and written(name) != name and (only is None or name in only):
            raise ConfigError(f"{name} in {file}", f"is not read here: write it as {written(name)}")
        found[name] = value
    return found


def _check_section(section: str, inner: str, file: str) -> None:
    """Raise `ConfigError` if a section has no such setting."""
    name = f"{section}_{inner}"
    if name in _HINTS:
        return
    nearest = next(iter(similar(name, [each for each in NAMES if each.startswith(f"{section}_")])), None)
    hint = f"; did you mean {written(nearest)}?" if nearest else ""
    if inner in _HINTS:
        hint = f"; it belongs above the line [{section}]"
    raise ConfigError(f"[{section}] {inner} in {file}", f"unknown setting{hint}")


def written(name: str) -> str:
    """Return how a file has a setting: ``port``, or ``[alerts] wecom``."""
    section, _, inner = name.partition("_")
    return f"[{section}] {inner}" if section in SECTIONS else name


def _toml_hint(text: str, error: str) -> str:
    """Return what is often wrong with a line such as the `error` names, without the line: it may hold a secret."""
    found = re.search(r"at line (\d+)", error)
    lines = text.splitlines()
    # An error at the end of the document has no number: it is in the last line that has anything.
    number = int(found[1]) if found else len(text.rstrip().splitlines())
    line = lines[number - 1] if 0 < number <= len(lines) else ""
    if '"' in line and "\\" in line:
        return f"; {_SINGLE_QUOTES}"
    if "Cannot overwrite" in error:
        return "; a setting stands in the file twice"
    if set(line) & set("“”‘’，＝"):
        return "; quotes, commas and = must be the plain ones, not those of a Chinese keyboard"
    return ""


def _convert(name: str, value: object, shown: str, *, strict: bool) -> object:
    if name not in _HINTS:
        plain = name.lower().removeprefix(ENV_PREFIX.lower())
        nearest = _nearest(plain) or _FOREIGN.get(plain)
        hint = f"; did you mean {nearest}?" if nearest else ""
        if isinstance(value, dict):
            hint = f"; the settings stand in no section, except {', '.join(SECTIONS)}"
        raise ConfigError(shown, f"unknown setting{hint}")
    if not strict and isinstance(value, str) and isinstance(default(name), tuple):
        value = [item.strip() for item in value.split(",") if item.strip()]
    try:
        converted = msgspec.convert(value, _HINTS[name], strict=strict)
    except UnicodeEncodeError:
        # Bytes of the environment that are no text.
        raise ConfigError(shown, "is not text in UTF-8") from None
    except msgspec.ValidationError as exc:
        if choices(name):
            raise ConfigError(shown, f"expected one of {', '.join(choices(name))}, got {_shown(value)}") from None
        # msgspec's sentence does not hold the value, so a secret is not shown.
        got = "" if name in SECRETS else f", got {_shown(value)}"
        hint = "; write it without quotes" if _is_quoted(name, value) else ""
        raise ConfigError(shown, f"{str(exc)[:1].lower()}{str(exc)[1:]}{got}{hint}") from None
    # An environment, by which a child gets its settings, has no such text; nor has a path or a name.
    texts = converted if isinstance(converted, tuple) else (converted,)
    if any(isinstance(text, str) and "\0" in text for text in texts):
        raise ConfigError(shown, "holds a NUL character")
    is_address = name in (*ADDRESSES, PUSH_ADDRESS)
    if (is_address and (converted or default(name))) or (name in FORWARDED and converted):
        _check_address(shown, str(converted))
    if name == "behind_proxy":
        for text in texts:
            _check_network(shown, str(text))
    return converted


def _shown(value: object) -> str:
    """Return what was given, cut, for an error."""
    try:
        shown = repr(value)
    except (RecursionError, ValueError):
        # A number of more than 4,300 digits has no other form.
        return f"{type(value).__name__}"
    return shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}..."


def _is_quoted(name: str, value: object) -> bool:
    """Return whether `value` is a text which without its quotes would be a value of the setting."""
    if not isinstance(value, str) or name in SECRETS or isinstance(default(name), str | tuple):
        return False
    try:
        msgspec.convert(value.strip().lower(), _HINTS[name], strict=False)
    except msgspec.ValidationError:
        return False
    return True


def _check_network(shown: str, text: str) -> None:
    """Raise `ConfigError` if `text` is no address or network, or a network of all addresses."""
    try:
        network = ip_network(text)
    except ValueError as exc:
        raise ConfigError(shown, f"expected an address or a network, such as 10.0.0.0/24: {exc}") from None
    if not network.prefixlen:
        raise ConfigError(shown, f"{text} are all addresses: every client could then say who it is")


def _check_address(shown: str, address: str) -> None:
    """Raise `ConfigError` if `address` is none of ZeroMQ's: libzmq takes port 99999 for 34463, and explains nothing."""
    tcp = _TCP.fullmatch(address)
    if address.startswith("ipc://") and len(os.fsencode(address.removeprefix("ipc://"))) > _IPC_BYTES:
        raise ConfigError(
            shown, f"a local socket's path has at most {_IPC_BYTES} bytes, not so many as {_shown(address)}"
        )
    if re.fullmatch(r"(ipc|inproc)://.+", address) or (tcp and (tcp[2] == "*" or int(tcp[2]) < 65536)):
        return
    hint = ""
    for guess in (f"tcp://{address}", f"tcp://127.0.0.1:{address}"):
        meant = _TCP.fullmatch(guess)
        if meant and meant[2] != "*" and int(meant[2]) < 65536:
            hint = f"; did you mean {guess}?"
            break
    raise ConfigError(shown, f"expected tcp://HOST:PORT, such as tcp://127.0.0.1:5555, got {_shown(address)}{hint}")
