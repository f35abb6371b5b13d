"""`python -m tests.bench`: its pure parts, and that each kind of client counts what was sent."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable

import msgspec
import pytest
from click.testing import CliRunner

from qmt_bridge.commands.load.crews import Crews
from qmt_bridge.wire.frames import encode, framed
from tests.bench import __main__ as command
from tests.bench import consumers, sizing, table, workers
from tests.bench.loads import MARKET, TEN
from tests.bench.observing import Figures, connect, load_of, observe
from tests.bench.publish import FIRST_SEQ, Slices, varied
from tests.bench.record import Part, Record
from tests.bench.search import Step, sustained
from tests.bench.servers import MSGPACK, OURS, PICKING, Missing, Row, fed
from tests.bench.targets import multiple, over_rounds, verdicts

RESULTS: dict[tuple[int, str], Figures] = {
    (1, OURS.name): {"rate": 2_000_000.0, "cpu": 0.8},
    (1, MSGPACK.name): {"rate": 1_000_000.0, "cpu": 1.0},
    (2, OURS.name): {"p99": 1.5},
    (3, OURS.name): {"rate": 150_000.0, "cpu": 1.0},
    (3, PICKING.name): {"rate": 90_000.0, "load_core": 0.99, "cpu": 0.5},
    (4, OURS.name): {"p50": 1.0},
    (7, OURS.name): {"connection_kb": 24.0, "worker_mb": 60.0},
    (16, "Node: zeromq.js"): {"ticks": 90_000.0, "ticks_limited": 1.0, "batches": 1200.0, "batches_limited": 0.0},
    (17, "1 worker, raw"): {"data_mb": 900.0, "wire_mb": 902.0, "cpu": 0.98},
    (17, "1 worker, deflated"): {"data_mb": 1000.0, "wire_mb": 200.0},
}


def part(**changes: object) -> Part:
    """Return a part without figures."""
    machine = {"cpu": "c", "cores": 2, "system": "s", "python": "p"}
    made = Part("2026-11-29", "abc", machine, {"ws": "8"}, 1.5, 600.0, {}, [], {})
    return msgspec.structs.replace(made, **changes)


def server(capacity: float, seen: list[float]) -> Callable[[float], Step]:
    """Return the measurement of a server that reaches `capacity`."""

    def measure(offered: float) -> Step:
        seen.append(offered)
        return Step(offered, min(offered, capacity), offered <= capacity, {})

    return measure


@pytest.mark.parametrize("first", [10.0, 95.0, 1000.0])
def test_the_search_ends_just_below_the_capacity(first):
    best, over = sustained(server(100.0, []), first, 20)
    assert best is not None
    assert over is not None
    assert 100 / 1.1 <= best.reached <= 100 < over.offered <= best.offered * 1.1


def test_the_search_returns_from_a_disturbed_measurement():
    seen: list[float] = []
    undisturbed = server(100.0, seen)

    def measure(offered: float) -> Step:
        first = not seen
        found = undisturbed(offered)
        return found._replace(reached=5.0, held=False) if first else found

    best, _ = sustained(measure, 110.0, 20)
    assert best is not None
    assert best.reached > 90


def test_the_search_without_a_limit_says_so():
    best, over = sustained(server(1e9, []), 10.0, 4)
    assert best is not None
    assert best.offered == pytest.approx(10 * 1.4**3)
    assert over is None


def test_a_record_keeps_each_load_in_its_file(tmp_path):
    path = tmp_path / "kept.json"
    Record(path).keep(3, part(rounds={"a": [{"rate": 1.0, "lost": None}]}))
    Record(path).keep(1, part(missing={"ws": "npm"}))
    again = Record(path)
    assert again.parts == {
        3: part(rounds={"a": [{"rate": 1.0, "lost": None}]}),
        1: part(missing={"ws": "npm"}),
    }
    assert list(again.rounds()) == [((3, "a"), [{"rate": 1.0, "lost": None}])]
    assert again.missing == {"ws": "npm"}


def test_only_rounds_of_the_same_conditions_are_continued(tmp_path):
    record = Record()
    record.keep(1, part(rounds={"a": [{"rate": 1.0}]}, failures=["x"]))
    for changes in ({"commit": "def"}, {"seconds": 2.0}, {"versions": {}}):
        assert record.begin(1, part(**changes), resume=True).rounds == {}
    assert record.begin(1, part(), resume=False).rounds == {}
    assert record.begin(2, part(), resume=True).rounds == {}
    continued = record.begin(1, part(date="2026-11-30"), resume=True)
    assert continued.rounds == {"a": [{"rate": 1.0}]}
    assert continued.failures == []


def run(path, *arguments):
    """Run the command with figures in a file."""
    return CliRunner().invoke(command.main, ["--keep", str(path), "--rounds", "2", "--ours", *arguments])


def test_a_run_keeps_what_was_measured_before_it_failed(tmp_path, monkeypatch):
    path, asked = tmp_path / "kept.json", []

    def attempt(number: int, row: Row, settings: object) -> Figures:
        asked.append(number)
        if number == 2 and asked.count(2) <= 2:
            raise OSError("no port")
        return {"connection_kb": 20.0 + len(asked)}

    loads = [command.LOADS[6]._replace(number=number, run=functools.partial(attempt, number)) for number in (1, 2, 3)]
    monkeypatch.setattr(command, "LOADS", loads)
    first = run(path)
    assert first.exit_code == 1
    assert "failed: load 2, round 1, this gateway: no port" in first.stdout
    assert asked == [1, 1, 2, 2, 3, 3]
    assert {number: found.count() for number, found in Record(path).parts.items()} == {1: 2, 2: 0, 3: 2}
    second = run(path, "--resume")
    assert second.exit_code == 0, second.output
    assert asked == [1, 1, 2, 2, 3, 3, 2, 2]
    assert [figures["connection_kb"] for figures in Record(path).parts[2].rounds[OURS.name]] == [27.0, 28.0]
    third = run(path, "--only", "3")
    assert third.exit_code == 0, third.output
    assert asked[8:] == [3, 3]
    assert {number: found.count() for number, found in Record(path).parts.items()} == {1: 2, 2: 2, 3: 2}


def test_a_server_that_is_not_installed_is_told(tmp_path, monkeypatch):
    def absent() -> None:
        raise Missing("apt install it")

    rows = (OURS, OURS._replace(name="peer", prepare=absent))
    load = command.LOADS[6]._replace(rows=rows, run=lambda row, settings: {"connection_kb": 1.0})
    monkeypatch.setattr(command, "LOADS", [load])
    result = CliRunner().invoke(command.main, ["--keep", str(tmp_path / "kept.json")])
    assert result.exit_code == 0, result.output
    said = "peer is not installed, so it was not measured: apt install it"
    assert said in result.stderr.splitlines()[0]
    assert said in result.stdout
    assert f"- {said}" in table.section({}, [], Record(tmp_path / "kept.json"), "")


def test_the_cost_of_an_encoding_stands_beside_its_rate():
    rows = {row[0]: row for row in table.comparison(RESULTS, {})}
    assert rows[MSGPACK.name][1:3] == ["1,000,000 (0.40 x JSON)", ""]
    assert rows[PICKING.name][1:3] == ["", "≥ 90,000 (1.20 x JSON)"]
    assert rows[OURS.name] == [OURS.name, "2,000,000", "150,000", "1.00 ms", "1.50 ms"]


@pytest.mark.parametrize(
    ("ratio", "said"), [(0.9876, "0.988"), (28.31, "28.3"), (284.4, "284"), (999.7, "1,000"), (2249.6, "2,250")]
)
def test_a_multiple_has_three_digits_or_is_whole(ratio, said):
    assert multiple(ratio) == said


def test_consumers_and_workers_have_tables_of_their_own():
    assert table.consumers(RESULTS)[1:] == [["Node: zeromq.js", "≥ 90,000", "1,200", "120,000"]]
    assert table.scaling(RESULTS)[1] == ["1 worker, raw", "900", "902", "", "", "0.98", ""]
    text = table.section(RESULTS, list(verdicts(RESULTS)), Record(), "x.png")
    assert "| Node: zeromq.js | ≥ 90,000 | 1,200 | 120,000 |" in text
    assert "- **Memory.** 60 MB a worker" in text


def test_the_sizing_rule_is_computed_from_the_figures():
    frames, clients, memory, bandwidth, whole = sizing.rules(RESULTS)
    assert "150,000 frames/s where clients share little (load 3), and 2,000,000" in frames
    assert "3.3 frames/s: by load 3 one core can serve 45,000" in clients
    assert "85 MB with 1,000 clients" in memory
    assert "1.6 KB/s, one of the whole market 0.80 MB/s (6.4 Mbit/s), deflated 0.16 MB/s: 20%" in bandwidth
    assert "900 MB/s, 1,125 clients of the whole market; deflated 1,000 MB/s" in whole
    assert sizing.rules({}) == []


def test_conditions_are_told_once_for_loads_that_share_them():
    rounds = {"a": [{"rate": 1.0}] * 3}
    parts = {number: part(rounds=rounds) for number in (1, 2, 3, 5)} | {11: part(rounds={"a": [{"others": 0.2}]})}
    said, others, _ = table.conditions(parts)
    assert said.startswith("c, 2 cores, s, p; ws 8. Loads 1 to 3, 5: 2026-11-29, commit abc, 3 rounds of 1.5 s. ")
    assert "Load 11: 2026-11-29, commit abc, 1 round of 600 s." in said
    assert said.count("2 cores") == 1
    assert others == "Other programs used 20% of a core meanwhile (median), 20% in the worst measurement."
    assert table.numbers([1, 2, 4]) == "Loads 1, 2, 4"


def test_memory_of_stalled_clients_counts_in_the_worst_round():
    rounds: list[Figures] = [{"growth_mb": 3.0, "p99": 1.0}, {"growth_mb": 6.0, "p99": 3.0}, {"growth_mb": 2.0}]
    assert over_rounds(rounds) == {"growth_mb": 6.0, "p99": 2.0}
    said = {verdict.target: verdict.met for verdict in verdicts({(9, OURS.name): over_rounds(rounds)})}
    assert said["memory grows by at most 5 MB in each round"] is False


@pytest.mark.parametrize(
    ("seconds", "peak", "met"), [(600, 0.01, True), (600, 0.03, False), (30, 0.01, None), (30, 0.03, None)]
)
def test_memory_is_flat_only_if_it_was_seen_for_ten_minutes(seconds, peak, met):
    figures: Figures = {"growth": 0.0, "peak": peak, "seconds": float(seconds)}
    assert [verdict.met for verdict in verdicts({(11, OURS.name): figures})] == [met]


def test_a_readme_gets_the_row_of_this_gateway():
    rows = [["server", "x"], [OURS.name, "new"], [MSGPACK.name, "y"]]
    assert table.with_speed(f"a\n| {OURS.name} | old |\nb\n", rows) == f"a\n| {OURS.name} | new |\nb\n"
    with pytest.raises(ValueError, match="0 lines begin"):
        table.with_speed("a\n", rows)


def test_the_documents_show_the_figures_that_are_kept():
    record = Record(command.KEPT)
    assert record.parts
    for path in (command.TABLES, *command.READMES):
        document = path.read_text(encoding="utf-8")
        assert command.document_of(path, document, record) == document, "python -m tests.bench --readme --only none"


def test_documents_need_the_loads_that_compare_servers(tmp_path):
    result = CliRunner().invoke(command.main, ["--readme", "--keep", str(tmp_path / "kept.json"), "--only", "1,3"])
    assert result.exit_code == 2
    assert "--only 2,4" in result.output


def test_a_batch_has_ticks_that_differ_from_code_to_code():
    codes = MARKET[:3]
    body = msgspec.json.decode(Slices().fill(codes, FIRST_SEQ + 7, 1_767_000_000_123_456))
    assert body == {code: varied(code, FIRST_SEQ + 7, 1_767_000_000_123_456) for code in codes}
    assert len({tick["lastPrice"] for tick in body.values()}) == 3


# Three processes start, which takes long beside the other tests.
@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", [MSGPACK, PICKING], ids=lambda row: row.name)
def test_clients_of_another_form_count_every_frame(row):
    with row.start() as running, Crews(load_of(running, row, TEN, 3), row.client) as crews:
        connect(running, crews, TEN)
        seen = observe(running, crews, TEN, 600.0, 0.5)
    assert seen.measured.frames > 20
    assert seen.measured.lost == 0
    assert seen.measured.unstamped == 0
    assert seen.measured.latency.total() > 0


RAW, DEFLATED = (
    next(row for row in workers.SCALING if row.name == f"1 worker, {form}") for form in ("raw", "deflated")
)


# Three processes start, which takes long beside the other tests.
@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", [RAW, DEFLATED], ids=lambda row: row.name)
def test_clients_of_a_whole_market_count_every_batch(row):
    with row.start() as running:
        url = running.url.replace("realtime", "whole_quote")
        with Crews(load_of(running, row, ("SH",), 6, url=url), row.client) as crews:
            crews.connect()
            seen = observe(running, crews, MARKET, 20.0 * 6, 0.5, "SH")
    assert seen.measured.frames > 6
    assert seen.measured.lost == 0
    assert seen.measured.unstamped == 0
    size = seen.measured.bytes / seen.measured.frames
    assert (size < 20_000) == (row is DEFLATED)


def test_split_frames_of_a_compressed_stream_are_counted_once():
    class Counting(workers.Inflating):
        looked: list[bytes]

        def __init__(self) -> None:
            self.frames, self._every, self._left, self.looked = 0, 2, 1, []

        def _look(self, data: bytearray, body: int, stop: int, now: float) -> None:
            self.looked.append(bytes(data[body:stop]))

    drawn = random.Random(1)
    sizes = (20, 200, 2000, 100_000)
    bodies = [encode({"600000.SH": {"filler": drawn.randbytes(size).hex()}}) for size in sizes]
    frames = [framed(body, deflated=True) for body in bodies]
    assert [frame[0] for frame in frames] == [0x81, 0xC1, 0xC1, 0xC1]
    stream = bytearray(b"".join(frames))
    for cut in (*range(3000), *range(3000, len(stream), 5003)):
        client = Counting()
        rest = client.split(stream[:cut], 0, cut)
        assert client.split(stream, rest, len(stream)) == len(stream)
        assert client.frames == 4, cut
        # Short frames are looked at, and every second one of the others.
        assert client.looked == [bodies[0], bodies[2]], cut


READERS = [row for row in consumers.CONSUMERS if re.match("Python", row.name)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("row", READERS, ids=lambda row: row.name)
@pytest.mark.parametrize(("topic", "market"), [("quote/", ""), ("whole/SH/", "SH")], ids=["ticks", "batches"])
def test_a_plain_consumer_reads_every_message(row, topic, market):
    with fed(kind="wire") as publisher:
        assert publisher.config is not None
        with row.start(publisher.config, topic) as reading:
            step = consumers.measured(reading, publisher, MARKET, market, 0.3)(50.0)
    assert step.figures == {"lost": 0.0}
    assert step.reached > 0
