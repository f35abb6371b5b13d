"""The sum of the measurements of several processes."""

from __future__ import annotations

from qmt_bridge.commands.load.measurement import Measurement


def test_measurements_of_processes_add_up():
    one, other = Measurement(), Measurement()
    for measured, lost in ((one, 2), (other, None)):
        measured.frames, measured.lost, measured.seconds, measured.cpu_seconds, measured.clients = 10, lost, 2.0, 1.0, 3
        measured.latency.add(1.0)
        measured.trouble["gone"] += 1
    one.add(other)
    assert (one.frames, one.lost, one.rate, one.busy, one.clients) == (20, None, 10.0, 0.5, 6)
    assert one.latency.total() == 2
    assert one.trouble == {"gone": 2}
