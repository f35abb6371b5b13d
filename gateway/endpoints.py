"""The six WebSocket endpoints: each reads requests and subscribes their topics. They run in the sessions' tasks.

Frames and errors as in docs/websocket.md, "The documented layer" and "Opting in".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, cast
from urllib.parse import parse_qs

import msgspec

from gateway.costs.budget import NAMED_REJECTIONS
from gateway.costs.shares import Download
from gateway.markets.search import CODES_OF_CLIENT, found_in_markets
from gateway.markets.subscription import MarketSubscription
from gateway.read_subscription import ReadSubscription
from gateway.sending.view import View
from gateway.session import FIRST_REQUEST_TIMEOUT, Ended, Endpoint, Session, shown_ignored
from gateway.starts import (
    complete_question,
    journal_question,
    playback_of,
    positions_by_topic,
    shown_beginning,
    shown_gap,
    shown_playback,
    store_questions,
)
from gateway.streams.member import Beginning, Refusal, StoreQuestion
from gateway.subscription import DOCUMENTED, Subscription, Terms, Ticket, reduced_view
from qmt_bridge.closes import BAD_REQUEST, FINISHED, UPSTREAM_AWAY, UPSTREAM_FAILED, Ending
from qmt_bridge.errors import BadCode, BadRequest, ErrorCode
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.codes import MARKETS, check_code, is_code
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.hints import Ignored, did_you_mean
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.positions import JournalPosition, Position
from qmt_bridge.wire.requests import (
    IGNORED_NAMES,
    DownloadStart,
    FormulaRequest,
    FormulaUnsubscribe,
    L2Request,
    Options,
    QuoteRequest,
    TradeResume,
    TradeStart,
    WholeRequest,
    ignored_fields,
    read_request,
    shown_word,
)
from qmt_bridge.wire.topics import (
    ALL_TRADES,
    FormulaSpec,
    Topic,
    behaviour_of,
    check_period,
    formula_spec,
    formula_topic,
    l2_topic,
    parse_topic,
    quote_topic,
    whole_topic,
)

# Parameters of every URL.
_PARAMETERS = ("api_key", "ctl")
# The actions of every URL; some URLs have more.
_ACTIONS = ("subscribe", "ping", "auth")
_OPTIONS = frozenset(Options.__struct_fields__)
# What a formula's request may leave out.
_OPTIONAL = frozenset(("period", "count", "dividend_type", "params"))
# A request may name thousands of codes. Each of the first refused codes gets an error frame; one more has the rest.
ERRORS_A_REQUEST = 20
# Codes that are read in one turn of the loop: this takes 0.5 to 1 ms.
CODES_A_TURN = 150


class Rejection(NamedTuple):
    """A code that a request named and that is not served."""

    code: str
    error: ErrorCode
    reason: str

    def shown(self) -> dict[str, str]:
        """Return the entry of an ack."""
        return self._asdict()


class _Asked(NamedTuple):
    """A request that names codes: their topics with the client's names, the refused codes, and the options."""

    topics: dict[Topic, str]
    rejected: list[Rejection]
    options: Options


class _Request:
    """A request for codes whose ack has not been sent yet.

    What happens to its codes meanwhile changes the ack: a refusal, or an unsubscription by a later request.
    """

    __slots__ = ("added", "asked", "positions", "questions", "refused", "ticket")

    def __init__(
        self,
        asked: _Asked,
        added: dict[Topic, str],
        refused: dict[Topic, Rejection],
        positions: dict[Topic, Position],
        questions: dict[Topic, StoreQuestion],
    ) -> None:
        self.asked = asked
        self.positions = positions
        # What the store was asked, of which the ack tells the beginnings.
        self.questions = questions
        # The topics that were not subscribed before, and still are.
        self.added = added
        # The topics beyond the limit, and those that the feeder has refused since.
        self.refused = refused
        # What holds the data of its new topics.
        self.ticket: Ticket | None = None

    def refuse(self, topic: Topic, refusal: Refusal) -> None:
        """Take the refusal of a topic that the request named."""
        self.added.pop(topic, None)
        self.refused[topic] = Rejection(self.asked.topics[topic], refusal.code, refusal.reason)


class _Codes:
    """The part shared by the endpoints whose requests name codes: subscribe, unsubscribe, list."""

    always_key: ClassVar[bool] = False
    # What a key has to allow.
    scope: ClassVar[Scope]
    # A sandboxed frame of any page looks like a file, and quotes are the least that it could take.
    to_files: ClassVar[bool] = True
    opts_in: ClassVar[frozenset[str]] = frozenset(("id", "action"))
    parameters: ClassVar[tuple[str, ...]] = _PARAMETERS
    first_request_timeout: ClassVar[float | None] = FIRST_REQUEST_TIMEOUT
    # The field that names the codes.
    field: ClassVar[str] = "stocks"
    # The field that says in which form a code is subscribed, if there are several forms, and its default.
    detail: ClassVar[str] = ""
    usual: ClassVar[str] = ""
    shape: ClassVar[type[Options]]

    def __init__(self, session: Session) -> None:
        self.session = session
        # The topics that the client asked for, with its names. Fewer may be subscribed (see WholeQuote.needed).
        self.wanted: dict[Topic, str] = {}
        self._held: dict[Topic, Subscription] = {}
        # The options of these topics.
        self._terms: dict[Topic, Terms] = {}
        # The views of those topics whose view leaves something out.
        self._views: dict[Topic, View] = {}
        # The requests whose acks have not been sent yet, the oldest first.
        self._open: tuple[_Request, ...] = ()
        # What the client asked for of a part of the day, which is no subscription of the codes.
        self._parts: dict[ReadSubscription, None] = {}
        session.on_refused = self._refused

    async def read(self, request: dict[str, Any]) -> _Asked:
        """Return what a request asks for, in several turns of the loop; raise `BadRequest` if it is invalid."""
        raise NotImplementedError

    def needed(self) -> Iterable[Topic]:
        """Return the topics to subscribe for what the client asked for."""
        return self.wanted

    async def elsewhere(self, questions: Mapping[Topic, StoreQuestion]) -> dict[Topic, StoreQuestion]:
        """Return the questions about topics that the store has as a part of others only."""
        return {}

    async def handle(self, request: dict[str, Any]) -> None:
        """Serve one request."""
        match request.get("action", "subscribe"):
            case "subscribe":
                await self._subscribe(request)
            case "unsubscribe":
                await self._unsubscribe(request)
            case "list":
                codes = sorted(set(self.wanted.values()))
                listed = {"type": "subscriptions", "id": request.get("id"), self.field: codes}
                listed |= self._by_detail(sorted(self.wanted.items()))
                self.session.tell(listed | shown_ignored(ignored_fields(request, None)))
            case action:
                raise _unknown_action(action, *_ACTIONS, "unsubscribe", "list")

    def _refused(self, subscription: Subscription, refusal: Refusal) -> None:
        """Forget a refused topic; the acks of requests that named it say so, or an error frame if all were sent."""
        topic = subscription.topic
        name = self._forget(topic)
        naming = [each for each in self._open if topic in each.asked.topics]
        for each in naming:
            each.refuse(topic, refusal)
        if not naming:
            self.session.error(refusal.code, refusal.reason, symbol=name, **self._detail_of(topic))
        if name in MARKETS:
            # Its codes may now need subscriptions of their own.
            self.session.sender.later(self._serve_codes_without_market)

    def _serve_codes_without_market(self) -> None:
        self._update()

    def _forget(self, topic: Topic) -> str:
        self._held.pop(topic, None)
        self._terms.pop(topic, None)
        self._set_view(topic, None)
        self.session.give_back(topic)
        return self.wanted.pop(topic)

    def _set_view(self, topic: Topic, view: View | None) -> None:
        before = self._views.pop(topic, None)
        if view is not None:
            self._views[topic] = view
            self.session.views.add(view)
        if before is not None:
            self.session.views.remove(before)

    def _view(self, named: Iterable[Topic], terms: Terms) -> View | None:
        """Return the view of a request's topics if it leaves something out.

        Raise `BadRequest` if the sockets of this address use too many others already.
        """
        # The topics of one request have the same kind and detail.
        first = next(iter(named), None)
        view = None if first is None else reduced_view(first, terms)
        if view is not None and not self.session.views.admits(view):
            self.session.host.limited["views"] += 1
            limit = self.session.host.config.max_views
            raise BadRequest("symbol_limit", f"an address uses at most {limit} different lists of fields and depths")
        return view

    async def _subscribe(self, request: dict[str, Any]) -> None:
        asked = await self.read(request)
        terms = _terms(asked.options)
        positions = positions_by_topic(asked.options.resume, asked.topics, "resume") if asked.options.resume else {}
        questions = store_questions(asked.options, asked.topics, self.session.host.config.outbox_bytes)
        view = self._view(asked.topics, terms)
        questions |= await self.elsewhere(questions)
        if asked.options.end is not None:
            await self._read_part(request, asked, terms, questions)
            return
        made = await self._make(asked.topics, terms, positions, questions)
        if not _OPTIONS.isdisjoint(request):
            # Without options, a code keeps those that it has.
            await self._serve_anew(asked.topics, terms, view)
        # A code that is subscribed already is subscribed again, from its new position on.
        anew = positions.keys() | questions.keys()
        self.session.unsubscribe(*(self._held.pop(topic) for topic in anew if topic in self._held))
        added, beyond = self._want(asked, terms, view)
        # A code whose market was subscribed too may have kept other options.
        made = {topic: of for topic, of in made.items() if self._terms.get(topic) is terms}
        ignored = ignored_fields(request, self.shape)
        if self.opts_in.isdisjoint(request):
            self._reject([*asked.rejected, *beyond.values()])
            self.session.tell_ignored(ignored)
            self._update(None if playback_of(questions) is None else _begin_together, positions, made)
            return
        opened = _Request(asked, added, beyond, positions, questions)

        def acknowledge(ticket: Ticket) -> None:
            self._open = tuple(each for each in self._open if each is not opened)
            head = {"type": "subscribed", "id": request.get("id")}
            ack = head | self._ack(opened, ticket)
            self.session.tell(ack | shown_ignored(ignored) | self._unknown_fields(ticket, asked.topics, terms))

        self._open = (*self._open, opened)
        for subscription in self._update(acknowledge, positions, made):
            if isinstance(subscription.gate, Ticket):
                opened.ticket = subscription.gate

    async def _make(
        self,
        topics: Iterable[Topic],
        terms: Terms,
        positions: Mapping[Topic, Position],
        questions: Mapping[Topic, StoreQuestion],
    ) -> dict[Topic, Subscription]:
        """Return subscriptions for those topics that may need new ones, made in several turns of the loop."""
        made: dict[Topic, Subscription] = {}
        for topic in topics:
            if topic in questions:
                made[topic] = self._reader(topic, terms, questions[topic], positions.get(topic))
            elif topic not in self._held or topic in positions:
                made[topic] = Subscription(self.session.sender, self.session, topic, terms, positions.get(topic))
            else:
                continue
            if not len(made) % CODES_A_TURN:
                await asyncio.sleep(0)
        return made

    def _reader(
        self,
        topic: Topic,
        terms: Terms,
        question: StoreQuestion,
        position: Position | None = None,
        on_end: Callable[[ReadSubscription], None] | None = None,
    ) -> ReadSubscription:
        if question.code is not None:
            return MarketSubscription(self.session.sender, self.session, topic, terms, question, on_end)
        return ReadSubscription(self.session.sender, self.session, topic, terms, question, position, on_end=on_end)

    async def _serve_anew(self, topics: Iterable[Topic], terms: Terms, view: View | None) -> None:
        """Serve those topics by these terms that the client has asked for before, in several turns of the loop."""
        for number, topic in enumerate(topics, 1):
            if not number % CODES_A_TURN:
                await asyncio.sleep(0)
            if topic in self.wanted:
                self._terms[topic] = terms
                self._set_view(topic, view)
                if topic in self._held:
                    self._held[topic].serve(terms)

    def _want(self, asked: _Asked, terms: Terms, view: View | None) -> tuple[dict[Topic, str], dict[Topic, Rejection]]:
        """Take the new topics of a request up to the limit; return them with their names, and those beyond it."""
        limit = self.session.max_topics
        added: dict[Topic, str] = {}
        beyond: dict[Topic, Rejection] = {}
        reason = f"a socket holds at most {limit} subscriptions"
        for topic, name in asked.topics.items():
            if topic in self.wanted:
                continue
            if len(self.wanted) >= limit:
                beyond[topic] = Rejection(name, "symbol_limit", reason)
                continue
            if not_shared := self.session.take(topic):
                beyond[topic] = Rejection(name, "symbol_limit", not_shared)
                continue
            self.wanted[topic] = added[topic] = name
            self._terms[topic] = terms
            self._set_view(topic, view)
            for opened in self._open:
                # This ack may come first: one that says then that the code was rejected would be wrong.
                opened.refused.pop(topic, None)
        return added, beyond

    def _ack(self, opened: _Request, ticket: Ticket) -> dict[str, Any]:
        """Return what the ack says of the codes."""
        asked, added = opened.asked, opened.added
        ack: dict[str, Any] = {
            "added": list(added.values()),
            **_shown(chain(asked.rejected, opened.refused.values()), len(asked.rejected) + len(opened.refused)),
            "active": len(self.wanted),
        }
        if opened.positions:
            # A code whose whole market is subscribed has no subscription, so its position cannot be recovered.
            joined = {of.topic for of in ticket.subscriptions if of.recovered}
            recovered = {asked.topics[topic]: topic in joined for topic in opened.positions}
            ack["recovered"] = all(recovered.values()) if "seq" in asked.options.resume else recovered
        if asked.options.start is not None:
            ack["start"] = self._beginnings(opened, ticket)
            ack |= shown_playback(opened.questions)
        # The source has not answered for these topics yet; if it refuses one, an error frame follows, or the ack of an
        # older request that named the topic says so.
        undecided = dict.fromkeys((*ticket.pending, *filter(self._is_undecided, asked.topics)))
        pending = [self.wanted[topic] for topic in undecided if topic in self.wanted]
        if pending:
            ack["pending"] = pending
        return ack | self._by_detail(added.items())

    def _beginnings(self, opened: _Request, ticket: Ticket) -> dict[str, dict[str, Any]]:
        """Return from when each code of a request is complete, or why it is not."""
        found = {of.topic: of for of in ticket.subscriptions if isinstance(of, ReadSubscription)}
        shown: dict[str, dict[str, Any]] = {}
        for topic, question in opened.questions.items():
            if topic in opened.refused or question.begins_live:
                continue
            of = found.get(topic)
            beginning = None if of is None else of.beginning
            # A code whose whole market is subscribed has no subscription of its own.
            untold = {"from": None, "complete": False, "reason": "market_subscribed"}
            entry = untold if beginning is None else shown_beginning(beginning)
            shown[opened.asked.topics[topic]] = entry | (
                {"market": of.market} if isinstance(of, MarketSubscription) else {}
            )
        return shown

    async def _read_part(
        self, request: dict[str, Any], asked: _Asked, terms: Terms, questions: Mapping[Topic, StoreQuestion]
    ) -> None:
        """Send a part of the day of some codes, and tell its end; nothing of them is subscribed."""
        limit = self.session.max_topics
        if len(self.wanted) + len(self._parts) + len(questions) > limit:
            raise BadRequest("symbol_limit", f"a socket holds at most {limit} subscriptions")
        opted_in = not self.opts_in.isdisjoint(request)
        left: dict[ReadSubscription, None] = {}

        def end(of: ReadSubscription) -> None:
            self._parts.pop(of, None)
            self.session.subscriptions.pop(of, None)
            left.pop(of, None)
            if not left:
                self.session.tell({"type": "end", "id": request.get("id")})

        def acknowledge(ticket: Ticket) -> None:
            opened = _Request(asked, {}, {}, {}, dict(questions))
            head: dict[str, Any] = {"type": "subscribed", "id": request.get("id"), "added": []}
            ack = head | _shown(asked.rejected, len(asked.rejected)) | {"active": len(self.wanted)}
            ack |= {"start": self._beginnings(opened, ticket)} | shown_playback(questions)
            self.session.tell(ack | shown_ignored(ignored) | self._unknown_fields(ticket, asked.topics, terms))

        ignored = ignored_fields(request, self.shape)
        if not opted_in:
            self._reject(asked.rejected)
            self.session.tell_ignored(ignored)
        for number, (topic, question) in enumerate(questions.items(), 1):
            left[self._reader(topic, terms, question, on_end=end)] = None
            if not number % CODES_A_TURN:
                await asyncio.sleep(0)
        self._parts.update(left)
        together = None if playback_of(questions) is None else _begin_together
        self.session.subscribe(list(left), None, acknowledge if opted_in else together)
        if not left:
            self.session.tell({"type": "end", "id": request.get("id")})

    def _is_undecided(self, topic: Topic) -> bool:
        held = self._held.get(topic)
        return held is not None and isinstance(held.gate, Ticket) and held.gate.waits_for(held)

    async def _unsubscribe(self, request: dict[str, Any]) -> None:
        named, rejected, _ = await self.read(request)
        ended = self._named(named, in_any_form=bool(self.detail) and self.detail not in request)
        parts = [of for of in self._parts if of.topic in named]
        found = {*ended.values(), *(named[of.topic] for of in parts)}
        missing = {topic: name for topic, name in named.items() if name not in found}
        rejections = _shown(chain(rejected, self._not_subscribed(missing)), len(rejected) + len(missing))
        for topic in ended:
            del self.wanted[topic]
            self._terms.pop(topic, None)
            self._set_view(topic, None)
            self.session.give_back(topic)
            for opened in self._open:
                opened.added.pop(topic, None)
        self.session.unsubscribe(*parts)
        for part in parts:
            part.end_early()
        self._update()
        removed = list(dict.fromkeys(ended.values()))
        answer = {"type": "unsubscribed", "id": request.get("id"), "removed": removed, "active": len(self.wanted)}
        answer |= rejections if rejections["rejected"] else {}
        answer |= self._by_detail(ended.items())
        self.session.tell(answer | shown_ignored(ignored_fields(request, self.shape)))

    def _named(self, named: dict[Topic, str], *, in_any_form: bool) -> dict[Topic, str]:
        """Return which of the named topics are subscribed; `in_any_form` these codes in every period or gear_num."""
        if not in_any_form:
            return {topic: name for topic, name in named.items() if topic in self.wanted}
        names = set(named.values())
        return {topic: name for topic, name in self.wanted.items() if name in names}

    def _not_subscribed(self, missing: Mapping[Topic, str]) -> Iterator[Rejection]:
        others: dict[str, list[str]] = {}
        for held, name in self.wanted.items() if missing and self.detail else ():
            others.setdefault(name, []).append(_detail(held))
        for topic, name in missing.items():
            reason = f"{name} is not subscribed"
            if name in others:
                reason += f" with {self.detail} {_detail(topic)}, only with {', '.join(others[name])}"
            yield Rejection(name, "not_subscribed", reason)

    def _by_detail(self, topics: Iterable[tuple[Topic, str]]) -> dict[str, dict[str, list[str]]]:
        """Return the additional field of a frame that names codes: by period or gear_num, if one is not the default."""
        by_detail: dict[str, list[str]] = {}
        for topic, name in topics if self.detail else ():
            by_detail.setdefault(_detail(topic), []).append(name)
        return {f"by_{self.detail}": by_detail} if by_detail.keys() - {self.usual} else {}

    def _detail_of(self, topic: Topic) -> dict[str, str]:
        """Return the additional field of an error frame: the period or gear_num, if it is not the default."""
        return {self.detail: _detail(topic)} if self.detail and _detail(topic) != self.usual else {}

    def _update(
        self,
        acknowledge: Callable[[Ticket], None] | None = None,
        positions: Mapping[Topic, Position] = MappingProxyType({}),
        made: Mapping[Topic, Subscription] = MappingProxyType({}),
    ) -> list[Subscription]:
        """Hold exactly the subscriptions that are needed for what the client asked for; return the new ones."""
        needed = dict.fromkeys(self.needed())
        self.session.unsubscribe(*[self._held.pop(topic) for topic in [*self._held] if topic not in needed])
        added: dict[Topic, Subscription] = {}
        for topic in needed:
            if topic not in self._held:
                # A code that has lost its market waits for the newest ack that is to name it.
                opened = self._naming(topic) if acknowledge is None else None
                position = (opened.positions if opened is not None else positions).get(topic)
                terms = self._terms.get(topic, DOCUMENTED)
                of = made.get(topic) if opened is None else None
                added[topic] = of or self._subscription(topic, terms, position)
                if opened is not None and opened.ticket is not None:
                    opened.ticket.add(added[topic])
        self._held.update(added)
        self.session.subscribe(list(added.values()), None, acknowledge)
        return list(added.values())

    def _subscription(self, topic: Topic, terms: Terms, position: Position | None) -> Subscription:
        if not terms.complete:
            return Subscription(self.session.sender, self.session, topic, terms, position)
        question = complete_question(self.session.host.config.outbox_bytes)
        return self._reader(topic, terms, question, position)

    def _naming(self, topic: Topic) -> _Request | None:
        """Return the newest request that names a topic and that has not been answered."""
        return next((opened for opened in reversed(self._open) if topic in opened.asked.topics), None)

    def _unknown_fields(self, ticket: Ticket, named: Iterable[Topic], terms: Terms) -> dict[str, Any]:
        """Return what an ack says of unknown names in the option `fields`: no documented or received record has them.

        This is no refusal: if a source delivers such a field, it is sent.
        """
        # The topics of one request have the same kind and detail.
        first = next(iter(named), None) if terms.fields else None
        known = frozenset[str]() if first is None else known_fields(*parse_topic(first)[::2])
        if not known:
            return {}
        seen = ticket.fields_held()
        strange = (name for name in terms.fields if name not in known | seen)
        unknown = [Ignored(name, _hint(name, known | seen)) for name in islice(strange, IGNORED_NAMES)]
        self.session.has_told(name for name, _ in unknown)
        return {"unknown_fields": [each._asdict() for each in unknown]} if unknown else {}

    def _reject(self, rejected: list[Rejection]) -> None:
        for rejection in rejected[:ERRORS_A_REQUEST]:
            self.session.error(rejection.error, rejection.reason, symbol=rejection.code)
        rest = rejected[ERRORS_A_REQUEST:]
        if rest:
            names = [rejection.code for rejection in rest]
            self.session.error(rest[0].error, f"{len(rest)} more codes", symbol=names[0], symbols=names)


class Realtime(_Codes):
    """`/ws/realtime`: ticks, bars and level-2 records of single instruments, as subscribe_quote delivers them."""

    scope: ClassVar[Scope] = "market"
    detail: ClassVar[str] = "period"
    usual: ClassVar[str] = "tick"
    shape: ClassVar[type[Options]] = QuoteRequest

    async def read(self, request: dict[str, Any]) -> _Asked:
        asked = read_request(request, QuoteRequest)
        period = check_period(asked.period)
        if period.startswith("l2"):
            self.session.require("l2")
        return _Asked(*await _checked(asked.stocks, lambda code: quote_topic(code, period)), asked)

    async def elsewhere(self, questions: Mapping[Topic, StoreQuestion]) -> dict[Topic, StoreQuestion]:
        # An id of an event has positions alone, and could not say that they are those of a market.
        if not questions or self.session.path.startswith("/sse/") or _detail(next(iter(questions))) != "tick":
            return {}
        others = [of for of in (*self._held.values(), *self._parts) if of.topic not in questions]
        used = sum(isinstance(of, MarketSubscription) for of in others)
        return await found_in_markets(self.session.host.feed.store, questions, CODES_OF_CLIENT - used)


class WholeQuote(_Codes):
    """`/ws/whole_quote`: whole markets and single codes; first the current snapshot, then the changes."""

    scope: ClassVar[Scope] = "market"
    field: ClassVar[str] = "codes"
    shape: ClassVar[type[Options]] = WholeRequest

    async def read(self, request: dict[str, Any]) -> _Asked:
        asked = read_request(request, WholeRequest)
        return _Asked(*await _checked(asked.codes, whole_topic), asked)

    def needed(self) -> Iterable[Topic]:
        # The records of a code whose whole market is subscribed too would be sent twice.
        return [topic for topic in self.wanted if not self._within_market(topic)]

    def _within_market(self, topic: Topic) -> bool:
        name = self.wanted[topic]
        return name not in MARKETS and whole_topic(name.rpartition(".")[2]) in self.wanted


class L2Thousand(_Codes):
    """`/ws/l2_thousand`: depth of up to a thousand levels."""

    scope: ClassVar[Scope] = "l2"
    detail: ClassVar[str] = "gear_num"
    usual: ClassVar[str] = "0"
    shape: ClassVar[type[Options]] = L2Request

    async def read(self, request: dict[str, Any]) -> _Asked:
        asked = read_request(request, L2Request)
        if asked.gear_num < 0:
            raise BadRequest("bad_request", f"gear_num must not be negative, got {asked.gear_num}")
        return _Asked(*await _checked(asked.stocks, lambda code: l2_topic(code, asked.gear_num)), asked)


class Formula:
    """`/ws/formula`: values of formulas; every subscription has a `seq_id`, unique in its socket."""

    always_key: ClassVar[bool] = False
    scope: ClassVar[Scope] = "formula"
    to_files: ClassVar[bool] = False
    # The documented request has an action on this URL, so an action does not show that the client opts in.
    opts_in: ClassVar[frozenset[str]] = frozenset(("id",))
    parameters: ClassVar[tuple[str, ...]] = _PARAMETERS
    first_request_timeout: ClassVar[float | None] = FIRST_REQUEST_TIMEOUT

    def __init__(self, session: Session) -> None:
        self.session = session
        session.on_refused = self._refused
        self._by_seq: dict[int, Subscription] = {}
        self._seqs: dict[Subscription, int] = {}
        self._newest_seq = 0

    async def handle(self, request: dict[str, Any]) -> None:
        """Serve one request."""
        match request.get("action", "subscribe"):
            case "subscribe":
                self._subscribe(request)
            case "unsubscribe":
                seq_id = read_request(request, FormulaUnsubscribe).seq_id
                subscription = self._by_seq.pop(seq_id, None)
                if subscription is None:
                    raise BadRequest("not_subscribed", f"no subscription has seq_id {seq_id}")
                del self._seqs[subscription]
                self.session.give_back(subscription.topic)
                self.session.unsubscribe(subscription)
                ended = {"action": "unsubscribed", "seq_id": seq_id, "id": request.get("id")}
                self.session.tell(ended | self._ignored(request, FormulaUnsubscribe))
            case "list":
                named = [{"seq_id": seq_id, **_formula(of.topic)} for seq_id, of in self._by_seq.items()]
                listed = {"type": "subscriptions", "id": request.get("id"), "formulas": named}
                self.session.tell(listed | self._ignored(request, None))
            case action:
                raise _unknown_action(action, *_ACTIONS, "unsubscribe", "list")

    def _subscribe(self, request: dict[str, Any]) -> None:
        asked = read_request(request, FormulaRequest)
        if asked.fields:
            raise BadRequest("bad_request", "fields are for quotes and depth; all values of a formula are sent")
        terms = _terms(asked)
        wanted = {name: getattr(asked, name) for name in FormulaSpec.__struct_fields__}
        topic = formula_topic(FormulaSpec(**{**wanted, "stock_code": check_code(asked.stock_code)}))
        named = {topic: str(asked.stock_code)}
        position = positions_by_topic(asked.resume, named, "resume").get(topic) if asked.resume else None
        question = store_questions(asked, named, self.session.host.config.outbox_bytes).get(topic)
        limit = self.session.max_topics
        if len(self._by_seq) >= limit:
            raise BadRequest("symbol_limit", f"a socket holds at most {limit} subscriptions")
        if reason := self.session.take(topic):
            # As a refusal by the feeder: the socket stays open.
            self.session.error("symbol_limit", reason, id=request.get("id"), **_formula_name(topic))
            return
        self._newest_seq += 1
        seq_id = self._newest_seq
        ignored = self._ignored(request, FormulaRequest)

        def acknowledge(ticket: Ticket) -> None:
            if topic in ticket.refused:
                refusal = ticket.refused[topic]
                self.session.error(refusal.code, refusal.reason, id=request.get("id"), **_formula_name(topic))
            elif seq_id not in self._by_seq:
                ended = f"seq_id {seq_id} was unsubscribed before the source had answered"
                self.session.error("not_subscribed", ended, id=request.get("id"), seq_id=seq_id)
            else:
                ack: dict[str, Any] = {"action": "subscribed", "seq_id": seq_id, "id": request.get("id")}
                if position is not None:
                    ack["recovered"] = bool(self._by_seq[seq_id].recovered)
                if isinstance(of, ReadSubscription) and of.beginning is not None:
                    ack |= {"start": shown_beginning(of.beginning)} | shown_playback({topic: of.question})
                self.session.tell(ack | ignored)

        def end(_: ReadSubscription) -> None:
            if self._by_seq.pop(seq_id, None) is not None:
                del self._seqs[of]
                self.session.give_back(topic)
                self.session.subscriptions.pop(of, None)
                self.session.tell({"type": "end", "id": request.get("id"), "seq_id": seq_id})

        of: Subscription
        if question is None:
            of = Subscription(self.session.sender, self.session, topic, terms, position, seq_id)
        else:
            of = ReadSubscription(self.session.sender, self.session, topic, terms, question, position, seq_id, end)
        self._by_seq[seq_id], self._seqs[of] = of, seq_id
        self.session.subscribe([of], None, acknowledge)

    def _ignored(self, request: dict[str, Any], shape: type[msgspec.Struct] | None) -> dict[str, Any]:
        """Return what an ack says of unknown names; a client that has not opted in is told by error frames instead."""
        found = ignored_fields(request, shape)
        if self.session.opted_in:
            return shown_ignored(found)
        self.session.tell_ignored(found)
        return {}

    def _refused(self, subscription: Subscription, refusal: Refusal) -> None:
        seq_id = self._seqs.pop(subscription, None)
        if seq_id is not None:
            del self._by_seq[seq_id]
            self.session.give_back(subscription.topic)
            if not isinstance(subscription.gate, Ticket):
                named = _formula_name(subscription.topic)
                self.session.error(refusal.code, refusal.reason, seq_id=seq_id, **named)


class _Download(Subscription):
    """Progress of a download; its last frame ends the socket."""

    def __init__(self, session: Session, topic: Topic) -> None:
        super().__init__(session.sender, session, topic)
        self._session = session

    def deliver(self, frame: Frame) -> None:
        super().deliver(frame)
        body = frame.data
        if "status" in body:
            self._session.download_ended()
        if body.get("status") == "done":
            self._session.end(Ended(FINISHED, "done"))
        elif "status" in body:
            # The frame has told the client of the error.
            code = cast(ErrorCode, str(body.get("code")))
            self._session.end(Ended(UPSTREAM_FAILED, str(body.get("error")), code=code, told=True))


class DownloadProgress:
    """`/ws/download_progress`: start a download or join an equal one; the socket ends with the download."""

    always_key: ClassVar[bool] = False
    scope: ClassVar[Scope] = "download"
    to_files: ClassVar[bool] = False
    opts_in: ClassVar[frozenset[str]] = frozenset(("id", "action"))
    parameters: ClassVar[tuple[str, ...]] = _PARAMETERS
    first_request_timeout: ClassVar[float | None] = FIRST_REQUEST_TIMEOUT

    def __init__(self, session: Session) -> None:
        self.session = session
        session.on_refused = self._refused
        self._started = False

    async def handle(self, request: dict[str, Any]) -> None:
        """Start the download that the first request asks for."""
        action = request.get("action", "subscribe")
        if action != "subscribe":
            raise _unknown_action(action, *_ACTIONS, told="; close the socket to end the download")
        if self._started:
            raise BadRequest("bad_request", "this socket has a download already; open another socket for the next one")
        asked = read_request(request, DownloadStart)
        period = check_period(asked.period)
        named, rejected = await _checked(asked.stocks, quote_topic)
        for rejection in rejected[:ERRORS_A_REQUEST]:
            self.session.error(rejection.error, rejection.reason, symbol=rejection.code)
        if not named:
            raise BadRequest("unknown_symbol", "none of the stocks is a code like '600519.SH'")
        self.session.tell_ignored(ignored_fields(request, DownloadStart))
        stocks = list(named.values())
        self._started = True
        download = Download(frozenset(stocks), period, asked.start_time, asked.end_time)
        if reason := self.session.take_download(download):
            self._fail(UPSTREAM_FAILED, "rate_limited", reason)
        started = await self.session.host.feed.start_download(stocks, period, asked.start_time, asked.end_time)
        if started is None:
            self._fail(UPSTREAM_AWAY, "upstream_unavailable", "the feeder is away")
        elif started.topic is None:
            self.session.download_ended()
            code = started.code or "upstream_refused"
            # Of a request that can never succeed, the close code must not say that a new connection may help.
            ending = BAD_REQUEST if code == "bad_request" else UPSTREAM_FAILED
            self._fail(ending, code, started.error or "the download was refused")
        else:
            self.session.subscribe([_Download(self.session, Topic(started.topic))], None, None)

    def _refused(self, subscription: Subscription, refusal: Refusal) -> None:
        # The feeder process that ran the download has ended; a new request starts the download again.
        self.session.error("upstream_unavailable", f"the download was lost: {refusal.reason}", status="error")
        self.session.end(Ended(UPSTREAM_AWAY, f"the download was lost: {refusal.reason}", told=True))

    def _fail(self, ending: Ending, code: ErrorCode, error: str) -> None:
        self.session.error(code, error, status="error")
        raise Ended(ending, error, code=code, told=True)


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
    parameters: ClassVar[tuple[str, ...]] = (*_PARAMETERS, "after", "epoch", "start", "end")
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
            raise _unknown_action(request.get("action"), *_ACTIONS)
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


ENDPOINTS: dict[str, type[Endpoint]] = {
    "/ws/realtime": Realtime,
    "/ws/whole_quote": WholeQuote,
    "/ws/l2_thousand": L2Thousand,
    "/ws/download_progress": DownloadProgress,
    "/ws/formula": Formula,
    "/ws/trade": Trade,
}


def _account_of(frame: Frame) -> object:
    """Return the account of a trade event; None if that is not known, so that no restricted key sees the event."""
    if frame.topic != ALL_TRADES:
        return parse_topic(frame.topic).name
    # Events that are replayed have the topic of all accounts.
    data = frame.data.get("data")
    return data.get("account_id") if isinstance(data, dict) else None


def _unknown_action(action: object, *known: str, told: str = "") -> BadRequest:
    hint = did_you_mean(action, known) if isinstance(action, str) else ""
    expected = f"unknown action {shown_word(action)}; {hint}{'; ' if hint else ''}expected one of {', '.join(known)}"
    return BadRequest("unknown_action", expected + told)


def _detail(topic: Topic) -> str:
    """Return the period or gear_num of a topic: `parse_topic` takes ten times as long, and also checks the code."""
    return topic.rsplit("/", 2)[1]


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or f"known are {', '.join(sorted(known))}"


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


async def _checked(codes: list[object], topic_of: Callable[[str], Topic]) -> tuple[dict[Topic, str], list[Rejection]]:
    """Return the topics of `codes` with their names, and the wrong codes; others have turns of the loop meanwhile."""
    topics: dict[Topic, str] = {}
    rejected: list[Rejection] = []
    for at in range(0, len(codes), CODES_A_TURN):
        if at:
            await asyncio.sleep(0)
        _check_part(codes[at : at + CODES_A_TURN], topic_of, topics, rejected)
    return topics, rejected


def _check_part(
    codes: list[object], topic_of: Callable[[str], Topic], topics: dict[Topic, str], rejected: list[Rejection]
) -> None:
    for code in codes:
        if len(rejected) >= NAMED_REJECTIONS and not (isinstance(code, str) and (code in MARKETS or is_code(code))):
            # No answer shows the reason, and a suggestion takes 20 us.
            rejected.append(Rejection(str(code)[:40] if isinstance(code, (str, int)) else "", "unknown_symbol", ""))
            continue
        try:
            # Codes and markets are strings; `check_code` refuses everything else, a number with a hint.
            name = code if isinstance(code, str) else check_code(code)
            topics[topic_of(name)] = name
        except BadCode as exc:
            rejected.append(Rejection(exc.symbol[:40], exc.code, exc.reason))


def _shown(rejected: Iterable[Rejection], count: int) -> dict[str, Any]:
    """Return what an ack says of `count` codes that are not served: the first of them, and how many more there are."""
    shown = [rejection.shown() for rejection in islice(rejected, NAMED_REJECTIONS)]
    more = count - len(shown)
    return {"rejected": shown} | ({"rejected_more": more} if more else {})


def _begin_together(ticket: Ticket) -> None:
    """Tell a client without an ack what is missing, once all that is played together has been found."""
    for of in ticket.subscriptions:
        if isinstance(of, ReadSubscription) and of.beginning is not None and of.beginning.gap is not None:
            of.gap(of.beginning.gap)


def _terms(options: Options) -> Terms:
    if options.mode == "all" and options.max_rate_ms:
        raise BadRequest("bad_request", 'mode "all" keeps every frame and max_rate_ms does not; choose one')
    if options.complete and options.max_rate_ms:
        raise BadRequest("bad_request", "complete leaves nothing out and max_rate_ms does; choose one")
    keeps_all = options.mode == "all" or options.complete
    interval = options.max_rate_ms / 1000
    return Terms(tuple(options.fields), options.seq, interval, keeps_all, options.snapshot, options.complete)


def _formula(topic: Topic) -> dict[str, Any]:
    """Return the request of a formula as `list` shows it: its name and code, and what is not the default."""
    spec = formula_spec(parse_topic(topic))
    usual = FormulaSpec(spec.formula_name, spec.stock_code)
    shown = msgspec.structs.asdict(spec)
    return {name: value for name, value in shown.items() if name not in _OPTIONAL or value != getattr(usual, name)}


def _formula_name(topic: Topic) -> dict[str, str]:
    spec = formula_spec(parse_topic(topic))
    return {"formula_name": spec.formula_name, "stock_code": spec.stock_code}
