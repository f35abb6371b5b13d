"""One topic of a consumer from a moment of the past on: what the store has, then what is published. Pure.

1. Subscribe, then ask the feeder where the topic is, and the store for the messages from that moment on; hold what
   arrives meanwhile.
2. After each answer ask for what follows, as fast as the caller takes it.
3. Where the held messages follow the last stored one, hand them out; the topic is live.
4. What the store does not have, or does not tell in `PATIENCE` seconds, is told as a gap.

With a playback the messages of an answer are handed out as they are due, and the next question follows the last of
them. What is published meanwhile is not held: the store has it.
"""

from __future__ import annotations

from collections import deque

from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.history import Hole, TopicHistory, timed_frames
from qmt_bridge.wire.playback import Playback
from qmt_bridge.wire.positions import NOWHERE, Position, held_instead
from qmt_bridge.wire.requests import CatchUp
from qmt_bridge.wire.topics import Topic

# Bytes of one answer: the caller sets the pace.
ROOM_BYTES = 512 * 1024
# Of one that is played, which each topic holds until its messages are due.
PLAYED_BYTES = 32 * 1024
# Bytes of messages that are held; what is dropped is read from the store again.
HELD_BYTES = 8 * 1024 * 1024
# Seconds without an answer after which the question is asked again, and seconds until the store is asked again that
# does not have yet what was published.
AGAIN_SECONDS = 1.0
BEHIND_SECONDS = 0.1
# Seconds until it is asked again while it completes the day from the source's history.
FILLING_SECONDS = 0.25
# Seconds without anything new after which the rest is told as a gap.
PATIENCE = 3.0


class StoredTopic:
    """How far one topic was read from the store."""

    def __init__(self, topic: Topic, start: int | str, playback: Playback | None = None) -> None:
        self.topic = topic
        self.playback = playback
        # Messages that are not due yet: the time of each, and the gaps before it.
        self.pending: deque[tuple[int, Frame, list[int | None]]] = deque()
        # Whether the stored messages have met the published ones.
        self.live = False
        # The last message that was handed out.
        self.position = NOWHERE
        # Where the feeder was when it was asked; the store has to reach it.
        self.target = NOWHERE
        # How many messages are missing, None where that is unknown; taken by the consumer.
        self.gaps: list[int | None] = []
        self._start: int | str = start
        self._question: int | None = None
        self.is_answered = False
        self._ask_at = 0.0
        self._fruitless_since: float | None = None
        self._held: deque[Frame] = deque()
        self._size = 0
        # Whether all that is stored was handed out, so that the next message shows whether something is missing.
        self._is_at_end = False

    def asks(self, now: float) -> bool:
        """Return whether there is something to ask; from the first such time on the store has to bring something."""
        if self.live or self._is_at_end or self.pending:
            return False
        if self._fruitless_since is None:
            self._fruitless_since = now
        return now >= self._ask_at

    def ask(self, number: int, now: float) -> CatchUp:
        """Return what to ask as question `number`."""
        self._question = number
        self._ask_at = now + AGAIN_SECONDS
        room = ROOM_BYTES if self.playback is None else PLAYED_BYTES
        if self.position == NOWHERE:
            return CatchUp(number, [self.topic], room=room, start=self._start)
        return CatchUp(number, [self.topic], self.position.seq, room, self.position.epoch)

    def arrived(self, frame: Frame) -> list[Frame]:
        """Return what can be handed out now that a message has been published."""
        if self._is_old(frame):
            return []
        if self.pending or self._stays_behind:
            self.target = max(self.target, Position(frame.epoch, frame.seq))
            self._is_at_end = False
            return []
        if self._is_at_end and self._follows(frame):
            self._held.append(frame)
            return self._go_live()
        if self._is_at_end:
            # The store may have what was lost on the way.
            self._is_at_end, self._ask_at = False, 0.0
        self._held.append(frame)
        self._size += len(frame.body)
        while self._size > HELD_BYTES:
            self._size -= len(self._held.popleft().body)
        return []

    def answered(self, history: TopicHistory, now: float) -> list[Frame]:
        """Return the messages of an answer, and the held ones that follow them."""
        if history.id != self._question or self.live:
            return []
        self._question = None
        if history.state == "filling":
            self._fruitless_since, self._ask_at = now, now + FILLING_SECONDS
            return []
        self.is_answered = True
        if history.state == "refused":
            return self._give_up()
        records = [(ms, frame) for ms, frame in timed_frames(history) if not self._is_old(frame)]
        holes = deque(hole for hole in history.holes if hole.before is None or hole.before > self.position)
        if self.playback is not None and records and not self._all_due(self.playback, records, now):
            self._load(self.playback, records, holes)
            return []
        met = self._held_instead([frame for _, frame in records], holes)
        if met is not None:
            del records[met:]
            last = NOWHERE if not records else Position(records[-1][1].epoch, records[-1][1].seq)
            holes = deque(hole for hole in holes if hole.before is not None and hole.before <= last)
        self.gaps += [_missing(hole.after, hole.before) for hole in holes]
        frames = [self._hand_out(frame) for _, frame in records]
        if frames:
            self._fruitless_since = None
        if met is not None:
            return frames + self._join(now)
        if history.epoch:
            self.position = max(self.position, history.position)
        if history.more:
            self._ask_at = 0.0
            return frames
        if not history.epoch and history.holes:
            # Nothing is stored.
            return self._give_up(is_told=True)
        return frames + self._join(now)

    def due(self, now: float) -> float | None:
        """Return when the next message is due; None without one."""
        return self.playback.due(self, now) if self.pending and self.playback is not None else None

    def take_due(self, now: float) -> list[tuple[int, Frame]]:
        """Return the messages that are due, with their times."""
        taken: list[tuple[int, Frame]] = []
        while self.playback is not None and (at := self.due(now)) is not None and at <= now:
            ms, frame, gaps = self.pending.popleft()
            self.gaps += gaps
            taken.append((ms, self._hand_out(frame)))
            if self.pending:
                self.playback.expects(self, self.pending[0][0])
            else:
                self.playback.leave(self)
                self._ask_at = 0.0
        return taken

    def give_up(self, now: float) -> list[Frame]:
        """Return the held messages if the store has brought nothing new for too long."""
        since = self._fruitless_since
        if self.live or self._is_at_end or self.pending or since is None or now - since < PATIENCE:
            return []
        return self._give_up()

    @property
    def _stays_behind(self) -> bool:
        return self.playback is not None and not self.playback.gains

    def _all_due(self, playback: Playback, records: list[tuple[int, Frame]], now: float) -> bool:
        """Return whether messages are due at once, as those are that were published a moment ago."""
        if not playback.is_started:
            return False
        # The first one sets the clock back, if it is late.
        for ms, _ in (records[0], records[-1]):
            playback.expects(self, ms)
            at = playback.due(self, now)
        playback.leave(self)
        return at <= now

    def _load(self, playback: Playback, records: list[tuple[int, Frame]], holes: deque[Hole]) -> None:
        """Keep the messages of an answer until they are due."""
        self._fruitless_since = None
        self._drop_held()
        for ms, frame in records:
            at = Position(frame.epoch, frame.seq)
            gaps: list[int | None] = []
            while holes and (holes[0].before is None or holes[0].before <= at):
                hole = holes.popleft()
                gaps.append(_missing(hole.after, hole.before))
            self.pending.append((ms, frame, gaps))
        playback.expects(self, records[0][0])

    def _held_instead(self, stored: list[Frame], holes: deque[Hole]) -> int | None:
        """Return after how many stored messages a held one follows that the store has missed; None: nowhere."""
        self._drop_old()
        if not holes or not self._held:
            return None
        held = [Position(frame.epoch, frame.seq) for frame in self._held]
        places = [Position(frame.epoch, frame.seq) for frame in stored]
        return held_instead(self.position, places, [hole.before for hole in holes], held)

    def _drop_held(self) -> None:
        """Forget held messages, which are asked for again."""
        if self._held:
            newest = self._held[-1]
            self.target = max(self.target, Position(newest.epoch, newest.seq))
            self._held.clear()
            self._size = 0

    def _join(self, now: float) -> list[Frame]:
        self._drop_old()
        if self._held and self._follows(self._held[0]):
            return self._go_live()
        if not self._held and (not self.target.seq or self.position >= self.target):
            self._is_at_end = True
            self._fruitless_since = None
        else:
            self._ask_at = now + BEHIND_SECONDS
        return []

    def _drop_old(self) -> None:
        self._held = deque(frame for frame in self._held if not self._is_old(frame))
        self._size = sum(len(frame.body) for frame in self._held)

    def _give_up(self, *, is_told: bool = False) -> list[Frame]:
        self._drop_old()
        is_next = self.is_answered and self._held and self._follows(self._held[0])
        if not is_told and not is_next:
            after = self.position if self.position != NOWHERE else None
            first = Position(self._held[0].epoch, self._held[0].seq) if self._held else None
            self.gaps.append(_missing(after, first))
        if not self._held:
            self.live = True
            return []
        if not self._follows(self._held[0]):
            self.position = Position(self._held[0].epoch, self._held[0].seq - 1)
        return self._go_live()

    def _go_live(self) -> list[Frame]:
        """Return the held messages, without those behind another gap: the store is asked for what is missing there."""
        frames: list[Frame] = []
        while self._held and self._follows(self._held[0]):
            frame = self._held.popleft()
            if self.position.epoch and frame.epoch != self.position.epoch:
                self.gaps.append(None)
            frames.append(self._hand_out(frame))
        self._drop_old()
        self.live = not self._held
        self._ask_at = 0.0
        self._fruitless_since = None
        return frames

    def _hand_out(self, frame: Frame) -> Frame:
        self.position = Position(frame.epoch, frame.seq)
        return frame

    def _follows(self, frame: Frame) -> bool:
        return self.position.is_followed_by(Position(frame.epoch, frame.seq), across=True)

    def _is_old(self, frame: Frame) -> bool:
        return Position(frame.epoch, frame.seq) <= self.position


def _missing(after: Position | None, before: Position | None) -> int | None:
    if after is None or before is None or after.epoch != before.epoch:
        return None
    return before.seq - after.seq - 1
