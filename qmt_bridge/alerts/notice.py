"""What is told to people: one message about an incident, or a report. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec

Event = Literal["alert", "repeat", "recovery", "report", "test"]


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One message; a program that takes the webhook gets these fields as JSON. Times are in ms since 1970.

    `id` is that of the incident: its alert, repetitions and recovery have the same. `text` is what people read; the
    first line is the title. `subject` is a masked account or a client, empty if the rule has but one subject.
    """

    event: Event
    id: str
    rule: str = ""
    subject: str = ""
    title: str
    text: str
    name: str
    simulated: bool = False
    since: int = 0
    time: int
