"""Turns of being read the store: a few of each client, address and worker, and everybody has one in time."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from gateway.costs import turns as turns_module
from gateway.costs.turns import (
    LARGEST,
    OF_ADDRESS,
    OF_CLIENT,
    OF_WORKER,
    OPENING_OF_CLIENT,
    Turns,
    chunk_bytes,
    unit_bytes,
)

OUTBOX = 4 * 1024 * 1024


def test_chunks_of_a_client_fill_half_of_its_outbox() -> None:
    assert OF_CLIENT * unit_bytes(OUTBOX) == OUTBOX // 2
    assert [OUTBOX // chunk_bytes(OUTBOX, readers) for readers in (1, 2, 4, 16, 5000)] == [4, 4, 8, 32, 32]
    assert chunk_bytes(1, 1) == LARGEST


def test_large_turns_of_a_client_are_fewer() -> None:
    turns, had = Turns(), []
    for reader in range(4):
        turns.ask(reader, "client", "here", lambda reader=reader: had.append(reader), LARGEST)
    assert had == [0, 1]
    turns.give_back(0, "client")
    assert had == [0, 1, 2]
    # A small one waits until the large ones before it had their turns.
    turns.ask("small", "client", "here", lambda: had.append("small"))
    turns.give_back(1, "client")
    assert had == [0, 1, 2, 3]
    turns.give_back(2, "client")
    assert had == [0, 1, 2, 3, "small"]


def test_small_turns_fill_what_a_large_one_gives_back() -> None:
    turns, had = Turns(), []
    turns.ask("large", "client", "here", lambda: had.append("large"), LARGEST)
    for reader in range(OF_CLIENT):
        turns.ask(reader, "client", "here", lambda reader=reader: had.append(reader))
    assert had == ["large", *range(OF_CLIENT - LARGEST)]
    turns.give_back("large", "client")
    assert had == ["large", *range(OF_CLIENT)]


def test_large_turn_needs_one_free_unit_of_the_worker() -> None:
    turns, had = Turns(), []
    for client in range(OF_WORKER):
        turns.ask(client, client, f"address {client}", lambda client=client: had.append(client))
    turns.ask("large", "client", "here", lambda: had.append("large"), LARGEST)
    turns.ask("small", "other", "there", lambda: had.append("small"))
    turns.give_back(0, 0)
    assert had[-1] == "large"
    turns.leave("client")
    assert had[-1] == "small"


def test_client_has_a_few_turns_and_the_next_one_when_one_ends() -> None:
    turns, had = Turns(), []
    for reader in range(OF_CLIENT + 2):
        turns.ask(reader, "client", "here", lambda reader=reader: had.append(reader))
    assert had == list(range(OF_CLIENT))
    turns.give_back(0, "client")
    assert had[OF_CLIENT:] == [OF_CLIENT]
    # It waits no longer.
    turns.give_back(OF_CLIENT + 1, "client")
    turns.give_back(1, "client")
    assert len(had) == OF_CLIENT + 1
    assert turns.limited == 0


def test_address_has_a_limit_for_all_its_clients() -> None:
    turns, had = Turns(), []
    for client in range(OF_ADDRESS + 1):
        turns.ask(client, f"client {client}", "here", lambda client=client: had.append(client))
    assert (had, turns.limited) == (list(range(OF_ADDRESS)), 1)
    turns.ask("other", "other", "there", lambda: had.append("other"))
    assert had[-1] == "other"
    turns.leave("client 3")
    assert had[-1] == OF_ADDRESS


def test_worker_has_a_limit_for_all_addresses() -> None:
    turns, had = Turns(), []
    for client in range(OF_WORKER + 1):
        turns.ask(client, client, f"address {client}", lambda client=client: had.append(client))
    assert had == list(range(OF_WORKER))
    turns.leave(0)
    assert had[-1] == OF_WORKER


@pytest.mark.parametrize("seed", range(50))
def test_limits_hold_and_every_reader_gets_its_turn(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "OF_ADDRESS", 3)
    monkeypatch.setattr(turns_module, "OF_WORKER", 5)
    rng, turns = random.Random(seed), Turns()
    taken: deque[tuple[str, int]] = deque()
    waiting: Counter[tuple[str, int]] = Counter()
    clients = [f"client {number}" for number in range(6)]

    def granted(reader: tuple[str, int]) -> None:
        waiting[reader] -= 1
        taken.append(reader)

    for _ in range(500):
        client = rng.choice(clients)
        match rng.randrange(5):
            case 0 | 1:
                reader = (client, rng.randrange(4))
                if not waiting[reader] and reader not in taken:
                    waiting[reader] += 1
                    turns.ask(reader, client, "here" if client[-1] < "3" else "there", lambda of=reader: granted(of))
            case 2 | 3 if taken:
                reader = taken.popleft()
                turns.give_back(reader, reader[0])
            case 4 if not rng.randrange(10):
                turns.leave(client)
                taken = deque(reader for reader in taken if reader[0] != client)
                for reader in [reader for reader in waiting if reader[0] == client]:
                    del waiting[reader]
        assert len(taken) <= 5
        assert max(Counter(of for of, _ in taken).values(), default=0) <= OF_CLIENT
        assert max(Counter(of[-1] < "3" for of, _ in taken).values(), default=0) <= 3
    while taken:
        reader = taken.popleft()
        turns.give_back(reader, reader[0])
    assert not +waiting


def test_first_chunks_have_turns_of_their_own_number() -> None:
    turns, had = Turns(OPENING_OF_CLIENT), []
    for reader in range(9):
        turns.ask(reader, "client", "here", lambda reader=reader: had.append(reader), LARGEST)
    assert had == list(range(8))
    turns.give_back(3, "client")
    assert had[-1] == 8


def test_turn_that_is_given_back_at_once_is_given_on() -> None:
    turns, had = Turns(1), []

    def act(reader: int) -> None:
        had.append(reader)
        turns.give_back(reader, "client")

    for reader in range(3):
        turns.ask(reader, "client", "here", lambda reader=reader: act(reader))
    assert had == [0, 1, 2]
