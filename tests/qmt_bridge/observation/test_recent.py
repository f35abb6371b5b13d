"""What has happened lately: bounded by kind, the newest first."""

from __future__ import annotations

from qmt_bridge.observation.recent import KEPT, SHOWN, Recent, newest


def test_newest_come_first() -> None:
    recent = Recent("feeder")
    recent.note("feed", "up", 1)
    recent.note("account", "logged in", 3)
    recent.note("feed", "down", 2)
    assert [each.text for each in recent.newest()] == ["logged in", "down", "up"]
    assert recent.newest()[0].where == "feeder"


def test_many_of_one_kind_push_out_no_other() -> None:
    recent = Recent("feeder")
    recent.note("feed", "down", 0)
    for number in range(1000):
        recent.note("refusal", f"{number}" * 1000, number + 1)
    found = recent.newest()
    assert len(found) == KEPT + 1
    assert found[-1].text == "down"
    assert max(len(each.text) for each in found) == 300


def test_kinds_are_bounded() -> None:
    recent = Recent("feeder")
    for number in range(1000):
        recent.note(f"kind{number}", "x", number)
    assert len(recent.newest()) == 20


def test_newest_of_all_processes_are_bounded() -> None:
    workers = [Recent(str(number)) for number in range(10)]
    for time in range(100):
        for worker in workers:
            worker.note("feed", "x", time)
    found = newest(event for worker in workers for event in worker.newest())
    assert len(found) == SHOWN
    assert found[0].time == 99


def test_text_with_half_a_character_is_kept_as_an_escape() -> None:
    recent = Recent("feeder")
    recent.note("journal", "x\udc80\0y", 0)
    assert recent.newest()[0].text == "x\\udc80 y"


def test_sentence_is_bounded_in_bytes() -> None:
    recent = Recent("feeder")
    recent.note("feed", "行情" * 1000, 0)
    assert 297 <= len(recent.newest()[0].text.encode()) <= 300
