"""Pushers beside another source: the kinds and markets that the setting `pushers` names come from them."""

from __future__ import annotations

from feeder.composite import Composite, Member
from feeder.push.source import PushSource
from feeder.source import Source
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError


def with_push(config: Config, other: Source) -> Composite:
    """Return `other` and the pushers as one source; raise `ConfigError` if the setting says nothing of them."""
    name = f"{other.name}+push"
    if not config.pushers:
        raise ConfigError("pushers", f"the source {name} needs it: it says what comes from the pushers")
    push = PushSource(config, real=not (other.simulated or other.name == "replay"))
    return Composite(name, [Member(push, push.may_serve), Member(other, lambda parts: True)])
