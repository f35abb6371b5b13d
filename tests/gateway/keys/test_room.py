"""Places: those without a key never keep out those with one."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.keys.room import Room
from qmt_bridge.keys.key import Key, sha256


def made(name: str, connections: int = 0) -> Key:
    return Key(name=name, sha256=sha256(name), scopes=("market",), connections=connections)


@pytest.mark.parametrize("places", [2, 3, 9, 10, 11, 5000])
def test_a_place_is_kept_for_sockets_with_a_key(places: int) -> None:
    room = Room(places, places)
    strangers = sum(room.enter("a", None) == "" for _ in range(2 * places))
    assert strangers == places - -(-places // 10)
    assert room.enter("a", made("k")) == ""
    assert not room.crowded


def test_a_socket_with_a_key_finds_room_although_all_places_are_taken() -> None:
    room, key = Room(10, 10), made("k")
    for _ in range(9):
        room.enter("a", None)
    assert [room.enter("a", key) for _ in range(10)] == [""] * 10
    assert room.crowded
    for _ in range(9):
        room.leave("a", None)
    assert not room.crowded
    assert "at most 10 sockets" in room.enter("a", key)


def test_one_place_is_for_everybody() -> None:
    room = Room(1, 1)
    assert room.enter("a", None) == ""
    assert room.enter("b", None) != ""
    assert room.enter("b", made("k")) == ""
    assert room.crowded


def test_limits_of_an_address_and_of_a_key() -> None:
    room, key = Room(100, 2), made("k", connections=2)
    assert [bool(room.enter("a", None)) for _ in range(3)] == [False, False, True]
    assert room.enter("b", None) == ""
    assert [bool(room.enter("a", key)) for _ in range(3)] == [False, False, True]
    room.leave("a", key)
    assert room.enter("c", key) == ""


@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_the_sockets_inside(seed: int) -> None:
    rng, room, inside = random.Random(seed), Room(20, 5), []
    keys = [None, None, made("k"), made("l", 3)]
    for _ in range(2000):
        if inside and rng.random() < 0.5:
            room.leave(*inside.pop(rng.randrange(len(inside))))
        else:
            who = rng.choice("abc"), rng.choice(keys)
            if not room.enter(*who):
                inside.append(who)
        assert room._total == len(inside)
        assert room._anonymous == sum(key is None for _, key in inside) <= 18
        assert room._addresses == Counter(address for address, key in inside if key is None)
        assert room._keys == Counter(key.sha256 for _, key in inside if key is not None)
