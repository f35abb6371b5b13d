"""`/ws/trade`: the events of the accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec

from gateway.endpoints.actions import ACTIONS, PARAMETERS, unknown_action
from gateway.session import Ended, Session
from gateway.starts import (
    journal_question,
    shown_beginning,
    shown_gap,
)
from gateway.streams.member import Beginning, Refusal
from gateway.subscription import Subscription, Ticket
from qmt_bridge.closes import BAD_REQUEST, UPSTREAM_FAILED
from qmt_bridge.errors import BadRequest
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.positions import JournalPosition
from qmt_bridge.wire.requests import (
    TradeResume,
    TradeStart,
    ignored_fields,
    read_request,
)
from qmt_bridge.wire.topics import (
    ALL_TRADES,
    behaviour_of,
    parse_topic,
)


class _TradeSubscription(Subscription):
    """The events of the journal, of all accounts or of some; a `Reader` of those from a moment on, or up to one.

    The positions of some accounts' events stay those of the journal, so a client sees holes in them.
    """

    def __init__(self, session: Session, accounts: Iterable[str], on_end: Callable[[], None]) -> None:
        super().__init__(session.sender, session, ALL_TRADES)
        self._session = session
        self._accounts = frozenset(accounts)
        self._on_end = on_end
        # Where the events begin that follow a moment, once the feeder has answered.
        self.beginning: Beginning | None = None

    def deliver(self, frame: Frame) -> None:
        if not self._accounts or _account_of(frame) in self._accounts:
            super().deliver(frame)

    def begins(self, beginning: Beginning) -> None:
        """Note where the events begin; without an ack that shows it, tell what is missing."""
        self.beginning = beginning
        if beginning.gap is not None and not isinstance(self.gate, Ticket):
            told = f"a part of what start asked for is missing: {beginning.gap.reason}"
            self._session.error("incomplete", told, **shown_gap(beginning.gap))

    def ended(self) -> None:
        """Tell the endpoint that all up to the end was delivered."""
        self.in_order(self._on_end)


class Trade:
    """`/ws/trade`: every trade event of every account, in the order of the journal, without a loss."""

    always_key: ClassVar[bool] = behaviour_of(ALL_TRADES).needs_key
    scope: ClassVar[Scope] = "trade"
    to_files: ClassVar[bool] = False
    opts_in: ClassVar[frozenset[str]] = frozenset(("id", "action", "resume", "start"))
    parameters: ClassVar[tuple[str, ...]] = (*PARAMETERS, "after", "epoch", "start", "end")
    first_request_timeout: ClassVar[float | None] = None

    def __init__(self, session: Session) -> None:
        self.session = session
        # While a ticket holds the events, the ack or what replaces it tells of a refusal.
        session.on_refused = lambda of, refusal: (
            None if isinstance(of.gate, Ticket) else self._refused(of, refusal, None)
        )
        query = parse_qs(session.query.decode("latin-1"))
        after = _number(query, "after", "a position in the journal")
        epoch = _number(query, "epoch", "that of an ack or a feed notice")
        if epoch is not None and after is None:
            raise Ended(BAD_REQUEST, "epoch says which journal has the position `after`, which is missing")
        start, end = _moment(query, "start"), _moment(query, "end")
        if start is not None and after is not None:
            raise Ended(BAD_REQUEST, "start and after both say where to begin; choose one")
        if end is not None and start is None and after is None:
            raise Ended(BAD_REQUEST, "end is that of a part of the day, which needs a start")
        given: int | str | JournalPosition | None = JournalPosition(after, epoch) if after is not None else start
        try:
            self._subscribe(None if given is None else journal_question(given, end))
        except BadRequest as exc:
            raise Ended(BAD_REQUEST, exc.reason) from None

    async def handle(self, request: dict[str, Any]) -> None:
        """Begin again at the position or the moment that a request names; every other request is refused."""
        if "start" in request and request.get("action", "subscribe") == "subscribe":
            asked = read_request(request, TradeStart)
            self._begin(journal_question(asked.start, asked.end), request, TradeStart)
            return
        if "resume" not in request or request.get("action", "subscribe") != "subscribe":
            if request.get("action", "subscribe") == "subscribe":
                strange = ignored_fields(request, TradeResume)
                named = f" ({strange[0].field}: {strange[0].hint})" if strange else ""
                told = f'events are sent without a request; to begin again send {{"resume": {{"seq": 8812}}}}{named}'
                raise BadRequest("unknown_action", told)
            raise unknown_action(request.get("action"), *ACTIONS)
        given = read_request(request, TradeResume).resume
        self._begin(journal_question(given, None), request, TradeResume)

    def _begin(self, after: JournalPosition, request: dict[str, Any], shape: type[msgspec.Struct]) -> None:
        self.session.tell_ignored(ignored_fields(request, shape))
        self.session.unsubscribe(self._subscription)
        self._subscribe(after, request.get("id"))

    def _refused(self, of: Subscription, refusal: Refusal, given: object) -> None:
        if refusal.code != "resume_expired":
            # An open socket without events would look like a day without trades. A new connection can resume.
            self.session.end(Ended(UPSTREAM_FAILED, refusal.reason, code=refusal.code))
            return
        newest = JournalPosition(refusal.newest, refusal.epoch)
        where = {"oldest": refusal.oldest, "newest": newest.seq, "epoch": newest.epoch}
        self.session.error(refusal.code, refusal.reason, id=given, **where)

        def go_on() -> None:
            # The error frame has told the client of the loss, and it may have resumed by a request meanwhile. One that
            # asked for a part of the day gets nothing live.
            if self._subscription is of and not self._has_end:
                self._subscribe(newest, given)

        self.session.sender.later(go_on)

    def _subscribe(self, after: JournalPosition | None, given: object = None) -> None:
        def end() -> None:
            self.session.subscriptions.pop(of, None)
            self.session.tell({"type": "end", "id": given})

        self._has_end = after is not None and after.end is not None
        key = self.session.key
        of = self._subscription = _TradeSubscription(self.session, () if key is None else key.accounts, end)

        def acknowledge(ticket: Ticket) -> None:
            for refusal in ticket.refused.values():
                self._refused(of, refusal, given)
            if not ticket.refused:
                ack = {"type": "subscribed", "id": given, "seq": of.began}
                if of.epoch:
                    ack["epoch"] = of.epoch
                if after is not None:
                    stream = self.session.host.feed.hub.streams[ALL_TRADES]
                    begin = after.seq if after.start is None else of.began
                    ack |= {"seq": max(of.began, stream.seq), "after": begin}
                if of.beginning is not None:
                    ack["start"] = shown_beginning(of.beginning)
                self.session.tell(ack)

        # No event after the ack is lost, so a client can wait for the ack before it sends an order.
        self.session.subscribe([of], after, acknowledge if self.session.opted_in else None)


def _account_of(frame: Frame) -> object:
    """Return the account of a trade event; None if that is not known, so that no restricted key sees the event."""
    if frame.topic != ALL_TRADES:
        return parse_topic(frame.topic).name
    # Events that are replayed have the topic of all accounts.
    data = frame.data.get("data")
    return data.get("account_id") if isinstance(data, dict) else None


def _moment(query: dict[str, list[str]], name: str) -> int | str | None:
    """Return a moment as a URL has it: digits are milliseconds."""
    [text] = query.get(name, [""])[-1:]
    return int(text) if text.isdecimal() and len(text) < 20 else text or None


def _number(query: dict[str, list[str]], name: str, what: str) -> int | None:
    [text] = query.get(name, [""])[-1:]
    if not text:
        return None
    # Positions are row ids of SQLite, and epochs are nanoseconds since 1970: both have 63 bits.
    if not text.isdecimal() or len(text) > 20 or int(text) >= 2**63:
        raise Ended(BAD_REQUEST, f"{name} must be {what}, got {text[:40]!r}")
    return int(text)
