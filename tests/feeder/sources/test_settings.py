"""The settings of a source of another package: its section, read into the package's own class."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest

from feeder.sources.settings import read_settings
from qmt_bridge.config import Config
from qmt_bridge.errors import ConfigError


class Settings(msgspec.Struct):
    user: str
    port: Annotated[int, msgspec.Meta(ge=1)] = 5
    rate: float = 0.5
    fast: bool = False
    codes: tuple[str, ...] = ()
    mode: Literal["a", "b"] = "a"


def read(**settings: object) -> Settings:
    return read_settings(Config(sources={"demo": settings, "other": {"x": 1}}), "demo", Settings)


def test_settings_have_the_types_of_the_class() -> None:
    assert read(user="u") == Settings("u")
    assert read(user="u", port=6, rate=2, codes=["a"]) == Settings("u", 6, 2.0, codes=("a",))


def test_a_text_of_a_variable_becomes_what_its_field_is() -> None:
    given = read(user="5", port="6", rate="2", fast="true", codes="a, b,", mode="b")
    assert given == Settings("5", 6, 2.0, True, ("a", "b"), "b")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "[sources.demo] user: is missing"),
        ({"user": "u", "prot": 6}, "[sources.demo] prot: unknown setting; did you mean port?"),
        ({"user": "u", "zzz": 6}, "[sources.demo] zzz: unknown setting"),
        ({"user": 5}, "[sources.demo] user: expected `str`, got `int`"),
        ({"user": "u", "port": 0}, "[sources.demo] port: expected `int` >= 1"),
        ({"user": "u", "port": "s3cret"}, "[sources.demo] port: expected `int`, got `str`"),
        ({"user": "u", "mode": "s3cret"}, "[sources.demo] mode: is none of the values that it may have"),
        ({"user": "u", "codes": 5}, "[sources.demo] codes: expected `array`, got `int`"),
    ],
)
def test_a_wrong_setting_is_named_without_its_value(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**settings)
    assert str(caught.value) == said
