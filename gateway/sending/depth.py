"""Which depth of the feeder serves one that a client asks for: few depths for all values of `gear_num`. Pure.

A depth of fewer levels is a part of one of more. Each value of `gear_num` would be a subscription of its own at the
terminal, where they are scarce; so a gateway subscribes the next larger of three sizes, and cuts it for each client.
"""

from __future__ import annotations

from qmt_bridge.wire.topics import Topic, l2_topic

# A depth of all thousand levels takes 40 KB, one of 20 levels 1 KB.
SIZES = (20, 100)


def served_by(topic: Topic) -> Topic:
    """Return the topic to subscribe for `topic`."""
    if not topic.startswith("l2/"):
        return topic
    _, code, levels, _ = topic.split("/")
    return l2_topic(code, _size(int(levels)))


def kept_levels(wanted: int) -> int:
    """Return the number of levels to keep of the records that serve a depth of `wanted` levels; 0: all."""
    return 0 if _size(wanted) == wanted else wanted


def _size(wanted: int) -> int:
    return next((size for size in SIZES if wanted <= size), 0) if wanted else 0
