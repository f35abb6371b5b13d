"""The settings of a source of another package: the section `[sources.NAME]`, read into a class of the package."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError
from qmt_bridge.wire.hints import similar

# The one error of msgspec that has the value.
_WITH_VALUE = "Invalid enum value"

Settings = TypeVar("Settings", bound=msgspec.Struct)


def read_settings(config: Config, name: str, shape: type[Settings]) -> Settings:
    """Return the settings of the source `name` as a `shape`, whose fields give types, limits and defaults.

    A variable QMT_BRIDGE_SOURCES_NAME_KEY is text, which becomes what its field is; a list is written as "a, b". Raise
    `ConfigError` for a setting that is unknown, missing or malformed; the error has no value, which may be a secret.
    """
    fields = {field.encode_name: field for field in msgspec.structs.fields(shape)}
    values: dict[str, object] = {}
    for key, value in config.sources.get(name, {}).items():
        shown = f"[sources.{name}] {key}"
        if key not in fields:
            nearest = next(iter(similar(key, fields)), None)
            raise ConfigError(shown, f"unknown setting; did you mean {nearest}?" if nearest else "unknown setting")
        try:
            values[key] = _converted(value, fields[key].type)
        except msgspec.ValidationError as exc:
            told = str(exc)
            if told.startswith(_WITH_VALUE):
                raise ConfigError(shown, "is none of the values that it may have") from None
            raise ConfigError(shown, f"{told[:1].lower()}{told[1:]}") from None
    for key, field in fields.items():
        if field.required and key not in values:
            raise ConfigError(f"[sources.{name}] {key}", "is missing")
    return msgspec.convert(values, shape)


def _converted(value: object, kind: object) -> object:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        if not isinstance(value, str):
            raise
        items = [item.strip() for item in value.split(",") if item.strip()]
        try:
            return msgspec.convert(items, kind, strict=False)
        except msgspec.ValidationError:
            pass
        raise
