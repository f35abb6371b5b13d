"""The members of a stream that have the same position and wait for the same thing. Pure.

A stream has one LIVE cohort and any number of others. The table says what happens to a cohort in each phase; a dash
means "nothing".

| phase    | a frame                    | its answer                  | a timeout                | a new epoch         |
|----------|----------------------------|-----------------------------|--------------------------|---------------------|
| LIVE     | deliver it; a gap is       | -                           | -                        | hold the frame that |
|          | counted or asks: ASKED     |                             |                          | shows it: ASKED     |
|          | (`on_gap`)                 |                             |                          |                     |
| ASKED    | hold it                    | deliver it and the held     | values: deliver what is  | hold the frame;     |
|          |                            | frames after it: LIVE or    | held: LIVE or AHEAD;     | events: ask again   |
|          |                            | AHEAD; ask again if frames  | events: ask again        | after an answer of  |
|          |                            | between are missing; a      |                          | an older epoch      |
|          |                            | chunk of a journal:         |                          |                     |
|          |                            | DRAINING                    |                          |                     |
| DRAINING | hold it                    | -                           | -; ASKED once the member | hold the frame      |
|          |                            |                             | has drained              |                     |
| AHEAD    | skip what the answer       | -                           | -                        | hold the frame that |
|          | contained, deliver the     |                             |                          | shows it: ASKED     |
|          | next: LIVE; events: after  |                             |                          |                     |
|          | a gap ASKED                |                             |                          |                     |

A cohort with a `reading` is read the store of the day in chunks, as events are read the journal: ASKED and DRAINING in
turn, then AHEAD or LIVE. What it needs of the held frames and what was dropped of them is read from the store again. A
gap while it is AHEAD makes it ASKED. If the store is away or behind, it is told what is missing and goes on like the
others. A member that is to miss nothing (`StoredStream.keep`) gets such a cohort after each loss, at the position that
it has: after a gap, in a new epoch, and when an answer is newer.

A cohort whose `reading` has a `playback` is PLAYING between two chunks: it is sent the records of a chunk as they are
due, and holds up nothing else: no frame is held for it, which the store has for it later. It is ASKED once the last
record of the chunk was due and the client was sent it. Played too slowly to ever reach what is published, it is never
LIVE: a frame makes it ASKED while it is AHEAD.

AHEAD exists because the answer and the frames arrive by two sockets: an answer may contain frames that the stream has
not received yet. A cohort without any position (`NOWHERE`) is AHEAD too; any frame makes it LIVE.
If a topic is refused, all members are removed; if a position is refused, only the members of its cohort.
"""

from __future__ import annotations

from enum import Enum, auto

from gateway.streams.member import Member
from gateway.streams.reading import Owed, Reading
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import NOWHERE, JournalPosition, Position


class Phase(Enum):
    """What a cohort waits for."""

    # The next frame.
    LIVE = auto()
    # The answer to a question.
    ASKED = auto()
    # Its one member, which has not been sent all of the last chunk of the journal.
    DRAINING = auto()
    # The frame after its answer.
    AHEAD = auto()
    # Its one member: until the next stored record is due, and until it was sent those before.
    PLAYING = auto()


class Cohort:
    """Members that have the same position; a LIVE cohort has the position of its stream."""

    __slots__ = (
        "after", "asked_at", "asked_from", "members", "outdated", "owed", "parts", "phase", "position", "question",
        "reading", "settled",
    )  # fmt: skip

    def __init__(
        self, phase: Phase, now: float = 0.0, position: Position = NOWHERE, after: JournalPosition | None = None
    ) -> None:
        self.phase = phase
        self.members: dict[Member, None] = {}
        # The last message that the members received. A last value that is not newer is not delivered to them.
        self.position = position
        # For a journal: the position after which to read it; None asks for its present position.
        self.after = after
        # The id of the question; None if there was no connection to the feeder.
        self.question: int | None = None
        # When the question was sent, or when the last part of its answer came.
        self.asked_at = now
        # The position of the stream at that time: the answer may have nothing newer.
        self.asked_from = NOWHERE
        # The parts of an answer that is not complete yet.
        self.parts: list[Frame] = []
        # The epoch of an answer that was ignored because the stream had seen a newer epoch; 0: none was ignored.
        self.outdated = 0
        # Whether the members have been told the outcome of joining.
        self.settled = False
        # What the one member of the cohort is read from the store; None if it is read nothing.
        self.reading: Reading | None = None
        # The gap of which the member has to be told with the answer.
        self.owed: Owed | None = None

    def apart(self) -> list[Cohort]:
        """Return a cohort for each member, which waits for this member to be sent the last chunk."""
        if self.reading is not None:
            # A late answer to it is not awaited any more.
            self.phase, self.question = Phase.DRAINING, None
            return [self]
        cohorts = []
        for member in self.members:
            own = Cohort(Phase.DRAINING, after=self.after)
            own.members[member] = None
            own.settled = True
            cohorts.append(own)
        return cohorts
