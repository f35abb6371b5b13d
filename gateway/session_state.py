"""The states of a session, and what each event does in each of them. Pure (docs/websocket.md, "States of a socket").

A session enters each state at most once. Only in two of them is the client told anything, so no notice of the worker
reaches a socket that has not shown its key, and none follows the reason of a close.
"""

from __future__ import annotations

import enum


class State(enum.Enum):
    """How far a session has come."""

    # Accepted; origin, limits and key are being checked.
    HANDSHAKE = "handshake"
    # Checked; told the welcome.
    ADMITTED = "admitted"
    # Requests are served.
    OPEN = "open"
    # The reason of the end is decided; what waits is written, then the close.
    CLOSING = "closing"
    # Nothing can be written any more.
    ABORTED = "aborted"


class Event(enum.Enum):
    """What happens to a session."""

    # Origin, limits and key are right.
    ADMIT = "admit"
    # The endpoint takes requests.
    OPEN = "open"
    # A control frame or error frame is to be sent.
    TELL = "tell"
    # There is a reason to end the session.
    END = "end"
    # The client's time to read its last frames is over.
    EXPIRE = "expire"
    # The client has disconnected, or the close has been written.
    LEAVE = "leave"


class Act(enum.Enum):
    """What the session does about an event."""

    IGNORE = "ignore"
    # Queue the frame.
    SEND = "send"
    # Close with the reason of this event. It is done once for a session, so the first reason counts.
    CLOSE = "close"
    # Drop the connection, whatever waits in it.
    ABORT = "abort"
    # Give up what the worker keeps for the session.
    RELEASE = "release"


# What each event does in each state: the next state, and the act.
TABLE: dict[State, dict[Event, tuple[State, Act]]] = {
    State.HANDSHAKE: {
        Event.ADMIT: (State.ADMITTED, Act.IGNORE),
        Event.OPEN: (State.HANDSHAKE, Act.IGNORE),
        Event.TELL: (State.HANDSHAKE, Act.IGNORE),
        Event.END: (State.CLOSING, Act.CLOSE),
        Event.EXPIRE: (State.HANDSHAKE, Act.IGNORE),
        Event.LEAVE: (State.ABORTED, Act.RELEASE),
    },
    State.ADMITTED: {
        Event.ADMIT: (State.ADMITTED, Act.IGNORE),
        Event.OPEN: (State.OPEN, Act.IGNORE),
        Event.TELL: (State.ADMITTED, Act.SEND),
        Event.END: (State.CLOSING, Act.CLOSE),
        Event.EXPIRE: (State.ADMITTED, Act.IGNORE),
        Event.LEAVE: (State.ABORTED, Act.RELEASE),
    },
    State.OPEN: {
        Event.ADMIT: (State.OPEN, Act.IGNORE),
        Event.OPEN: (State.OPEN, Act.IGNORE),
        Event.TELL: (State.OPEN, Act.SEND),
        Event.END: (State.CLOSING, Act.CLOSE),
        Event.EXPIRE: (State.OPEN, Act.IGNORE),
        Event.LEAVE: (State.ABORTED, Act.RELEASE),
    },
    State.CLOSING: {
        Event.ADMIT: (State.CLOSING, Act.IGNORE),
        Event.OPEN: (State.CLOSING, Act.IGNORE),
        Event.TELL: (State.CLOSING, Act.IGNORE),
        Event.END: (State.CLOSING, Act.IGNORE),
        Event.EXPIRE: (State.CLOSING, Act.ABORT),
        Event.LEAVE: (State.ABORTED, Act.RELEASE),
    },
    State.ABORTED: dict.fromkeys(Event, (State.ABORTED, Act.IGNORE)),
}
