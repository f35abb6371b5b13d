"""The four addresses of the feeder, and the keys of each: what both ends make of the same settings.

Quotes may be open to every user of the machine. Trade events, the questions about them, and downloads are not: they go
through a local socket in a folder of one user, or by CURVE keys, unless `open_trade_addr` says otherwise.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from qmt_bridge import private
from qmt_bridge.addresses import ipc_folder
from qmt_bridge.config import Config
from qmt_bridge.curve.key_folder import Curve, End, load_curve, own_keys
from qmt_bridge.errors import ConfigError
from qmt_bridge.sockets import is_local

# Where there are no local sockets with an owner.
_TRADE = "tcp://127.0.0.1:5556"
_TRADE_ASK = "tcp://127.0.0.1:5558"


class Endpoint(NamedTuple):
    """One socket of the feeder: the setting, its address, and the keys of this end."""

    name: str
    address: str
    curve: Curve | None = None


def addresses(config: Config) -> dict[str, str]:
    """Return the four addresses by their settings, with those that are empty filled in."""
    own = None if config.open_trade_addr or sys.platform == "win32" else ipc_folder.own_folder(config.data_path)
    trade = config.trade_addr or (_TRADE if own is None else f"ipc://{own / 'trade.sock'}")
    if config.trade_ask_addr:
        trade_ask = config.trade_ask_addr
    elif config.open_trade_addr or config.curve_dir:
        # There the key of each asker is known, or everybody may ask.
        trade_ask = config.ask_addr
    else:
        trade_ask = _TRADE_ASK if own is None else f"ipc://{own / 'ask.sock'}"
    return {
        "market_addr": config.market_addr,
        "trade_addr": trade,
        "ask_addr": config.ask_addr,
        "trade_ask_addr": trade_ask,
    }


def market_endpoints(config: Config, end: End) -> tuple[Endpoint, Endpoint]:
    """Return the sockets of market data and of questions about it; raise `ConfigError` for keys that are missing."""
    curve = load_curve(config.curve_dir, end)
    return Endpoint("market_addr", config.market_addr, curve), Endpoint("ask_addr", config.ask_addr, curve)


def supervised_endpoint(config: Config) -> Endpoint:
    """Return the socket for questions with the keys of the process that starts the feeder; raise `ConfigError`.

    These are the feeder's own: its machine need not have those of a gateway.
    """
    curve = load_curve(config.curve_dir, "feeder")
    return Endpoint("ask_addr", config.ask_addr, curve and curve._replace(server=curve.public))


def store_endpoint(config: Config, end: End) -> Endpoint:
    """Return the socket of the store, which listens with the feeder's keys; raise `ConfigError` for missing keys."""
    return Endpoint("store_addr", config.store_addr, load_curve(config.curve_dir, end))


def supervised_store(config: Config) -> Endpoint:
    """Return the store's socket with the keys of the process that starts it: see `supervised_endpoint`."""
    found = store_endpoint(config, "feeder")
    return found._replace(curve=found.curve and found.curve._replace(server=found.curve.public))


def watched_endpoints(config: Config) -> tuple[Endpoint, Endpoint]:
    """Return the sockets for questions to feeder and store, for a program that only watches them; raise `ConfigError`.

    It has the feeder's keys on the feeder's machine, which need not have those of a client, and else a client's.
    """
    if not config.curve_dir or (Path(config.curve_dir) / "feeder.key_secret").exists():
        return supervised_endpoint(config), supervised_store(config)
    return market_endpoints(config, "gateway")[1], store_endpoint(config, "gateway")


def followed_endpoint(config: Config) -> Endpoint:
    """Return the socket of market data for a store, beside the feeder or on a machine with its keys.

    Raise `ConfigError` for missing keys. It is a client like any other, so it needs a key that the feeder admits.
    """
    return Endpoint("market_addr", config.market_addr, load_curve(config.curve_dir, "gateway"))


def source_endpoint(config: Config) -> Endpoint:
    """Return the socket at which a store asks the feeder for histories; raise `ConfigError` for missing keys."""
    return Endpoint("ask_addr", config.ask_addr, load_curve(config.curve_dir, "gateway"))


def reporting_endpoint(config: Config) -> Endpoint:
    """Return the socket at which a store or alerts report to the feeder: that of the surveys; raise `ConfigError`.

    By CURVE a process on the feeder's machine has the feeder's keys, another one a client's.
    """
    if config.curve_dir:
        return Endpoint("trade_ask_addr", addresses(config)["trade_ask_addr"], watched_endpoints(config)[0].curve)
    return trade_endpoints(config, "gateway", makes=False)[1]


class Forwarded(NamedTuple):
    """What a forwarder passes on: where it connects, and where it listens for its own clients."""

    upstream: Endpoint
    listened: Endpoint


def forwarded_endpoints(config: Config) -> dict[str, Forwarded]:
    """Return what a forwarder passes on, by "market", "ask", and if their addresses are set "trade" and "store".

    Raise `ConfigError` for keys that are missing, and where another user of the machine would get trade events.
    """
    if config.forward_trade_addr and not (config.curve_dir or config.open_trade_addr):
        raise ConfigError(
            "curve_dir",
            "trade events are passed on with CURVE keys alone: set it to a folder that `qmt-bridge keygen FOLDER "
            '--forward` has completed, or set forward_trade_addr = "" to pass on market data alone',
        )
    market, ask = market_endpoints(config, "gateway")
    found = {"market": market, "ask": ask}
    if config.forward_trade_addr:
        trade, trade_ask = trade_endpoints(config, "gateway", makes=False)
        if trade_ask.name != ask.name:
            raise ConfigError("trade_ask_addr", "a forwarder passes all questions on to ask_addr: leave it out")
        found["trade"] = trade
    if config.forward_store_addr:
        found["store"] = store_endpoint(config, "gateway")
    own = load_curve(config.curve_dir, "forward")
    addresses = {
        "market": config.forward_market_addr,
        "ask": config.forward_ask_addr,
        "trade": config.forward_trade_addr,
        "store": config.forward_store_addr,
    }
    for name, upstream in found.items():
        if upstream.address == addresses[name]:
            raise ConfigError(f"forward_{name}_addr", f"is {upstream.name}: the forwarder would be its own feeder")
    return {
        name: Forwarded(upstream, Endpoint(f"forward_{name}_addr", addresses[name], own))
        for name, upstream in found.items()
    }


def trade_endpoints(config: Config, end: End, *, makes: bool) -> tuple[Endpoint, Endpoint]:
    """Return the sockets of trade events and of questions about them; the second may be that of all questions.

    With `makes`, the folder and the keys of this user are made if they are missing. Raise `ConfigError` for an address
    at which another user could listen, or could read, and for keys that are missing.
    """
    where = addresses(config)
    trade = _protected("trade_addr", where["trade_addr"], config, end, makes)
    if where["trade_ask_addr"] != config.ask_addr:
        return trade, _protected("trade_ask_addr", where["trade_ask_addr"], config, end, makes)
    if not (config.curve_dir or config.open_trade_addr or ipc_folder.is_ipc(config.ask_addr)):
        raise ConfigError(
            "trade_ask_addr", f"is ask_addr, where every user of the machine may ask: leave it out, or {_OPENLY}"
        )
    asks = _protected("ask_addr", config.ask_addr, config, end, makes)
    return trade, asks


def listening_endpoint(config: Config, name: str) -> Endpoint:
    """Return what a feeder would listen on, and make nothing: the keys that it makes at its start may be missing.

    Raise `ConfigError` as the feeder would.
    """
    address = addresses(config)[name]
    if not name.startswith("trade"):
        return Endpoint(name, address, load_curve(config.curve_dir, "feeder"))
    if _by_own_keys(address, config) and is_local(address) and not own_key_folder(config).exists():
        return Endpoint(name, address)
    found = Endpoint(name, address)
    if not config.curve_dir and is_own(config, found) and not ipc_folder.own_folder(config.data_path).exists():
        return found
    return _protected(name, address, config, "feeder", makes=False)


def is_own(config: Config, where: Endpoint) -> bool:
    """Return whether an endpoint is a local socket in the folder that belongs to the data folder."""
    own = ipc_folder.own_folder(config.data_path)
    return ipc_folder.is_ipc(where.address) and ipc_folder.folder_of(where.address) == own


def needs_keys(config: Config, name: str) -> bool:
    """Return whether no gateway starts with these settings, because the address is on another machine without keys."""
    address = addresses(config)[name]
    return name.startswith("trade") and _by_own_keys(address, config) and not is_local(address)


def key_folder(config: Config) -> Path | None:
    """Return the folder of the CURVE keys that trade events need here; None without CURVE."""
    if config.curve_dir:
        return Path(config.curve_dir)
    where = addresses(config)
    of_trades = (where["trade_addr"], where["trade_ask_addr"])
    return own_key_folder(config) if any(_by_own_keys(address, config) for address in of_trades) else None


def own_key_folder(config: Config) -> Path:
    """Return the folder of the keys that a feeder makes for the programs of its own user."""
    return config.data_path / "curve"


_OPENLY = "set open_trade_addr to give trade events to all of them"


def _by_own_keys(address: str, config: Config) -> bool:
    is_folder = ipc_folder.is_ipc(address) and sys.platform != "win32"
    return not (config.curve_dir or config.open_trade_addr or is_folder or address.startswith("inproc://"))


def _protected(name: str, address: str, config: Config, end: End, makes: bool) -> Endpoint:
    if makes:
        _make_folder(address, config, end)
    if config.curve_dir:
        return Endpoint(name, address, load_curve(config.curve_dir, end))
    if not _by_own_keys(address, config):
        if ipc_folder.is_ipc(address) and not config.open_trade_addr:
            _check_folder(name, address, config, end)
        return Endpoint(name, address)
    if not is_local(address):
        raise ConfigError(name, f"{address} can be reached from other machines; it needs curve_dir")
    folder = own_key_folder(config)
    if makes:
        own_keys(folder)
    try:
        return Endpoint(name, address, load_curve(str(folder), end))
    except ConfigError as exc:
        raise ConfigError(
            name,
            f"{address} needs the CURVE keys that the feeder makes in {folder} ({exc.reason}): start the feeder, give "
            "this program its data_dir or a curve_dir",
        ) from exc


def _make_folder(address: str, config: Config, end: End) -> None:
    """Make the folder of the user's own local sockets, if an address is in it."""
    if not is_own(config, Endpoint("", address)):
        return
    own = ipc_folder.own_folder(config.data_path)
    try:
        private.keep_folder(own)
    except OSError as exc:
        # A gateway may be another user than the feeder, which makes it.
        if end == "feeder":
            raise ConfigError("data_dir", f"cannot make the folder {own}: {exc.strerror or exc}") from exc


def _check_folder(name: str, address: str, config: Config, end: End) -> None:
    """Raise `ConfigError` unless only this user, root or the owner of its folder can listen at an ipc address.

    A gateway may be another user than the feeder, to whom the folder belongs. A feeder listens in no folder of another
    user, who could replace its socket.
    """
    short = is_own(config, Endpoint(name, address)) and ipc_folder.is_short(ipc_folder.own_folder(config.data_path))
    owners = () if end == "feeder" else _owners(config.data_path) if short else None
    why = ipc_folder.why_not_trusted(address, owners)
    if why:
        advice = "Use a data_dir with a shorter path" if short else f"Use a folder of mode 0700, leave {name} out"
        raise ConfigError(
            name,
            f"another user could listen at {address} in the place of the feeder: {why}. {advice}, or set curve_dir",
        )
    why = ipc_folder.why_not_closed(address) if end == "feeder" else ""
    if why:
        raise ConfigError(name, f"{address} would be open: {why}, or {_OPENLY}")


def _owners(folder: Path) -> tuple[int, ...]:
    return (folder.stat().st_uid,) if folder.exists() else ()
