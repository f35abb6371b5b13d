"""The topics of the feeder for a survey about subscriptions, in the order of their texts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import nsmallest

from feeder.registry import Entry
from qmt_bridge.wire.survey import FEEDER_BYTES, SubscriptionTerms, TopicFound, TopicsFound
from qmt_bridge.wire.topics import STATUS_TOPIC

# Topics that are looked at, in some 50 us, before other work has its turn. The feeder has up to a hundred thousand.
AT_A_TIME = 200


def listed(entries: Mapping[str, Entry], terms: SubscriptionTerms, now: float) -> Iterator[TopicsFound | None]:
    """Yield None after each part of the work, and at last the topics that `terms` ask for."""
    named = entries if terms.topics is None else dict.fromkeys(terms.topics)
    waiting = [text for text in named if text in entries]
    total = 0
    first: list[str] = []
    for at in range(0, len(waiting), AT_A_TIME):
        part = [text for text in waiting[at : at + AT_A_TIME] if text.startswith(terms.prefix) and text != STATUS_TOPIC]
        total += len(part)
        # One more than is shown, because it says that there are more.
        first = nsmallest(terms.limit + 1, [*first, *(text for text in part if text > terms.after)])
        yield None
    more = len(first) > terms.limit
    shown: list[TopicFound] = []
    size = 0
    for text in first[: terms.limit]:
        # It may have ended meanwhile.
        entry = entries.get(text)
        if entry is None:
            continue
        size += len(text) + len(entry.reason or "") + 100
        if shown and size > FEEDER_BYTES:
            more = True
            break
        age = None if entry.published_at is None else round(now - entry.published_at, 3)
        shown.append(TopicFound(text, entry.state, entry.code, entry.reason, entry.seq, age))
    yield TopicsFound(shown, total, more)
