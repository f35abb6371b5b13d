"""The endpoints whose requests name codes: subscribe, unsubscribe, list."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from gateway.endpoints.actions import ACTIONS, PARAMETERS, unknown_action
from gateway.endpoints.rejections import CODES_A_TURN, ERRORS_A_REQUEST, Rejection, shown_rejections
from gateway.endpoints.terms import terms_of
from gateway.markets.subscription import MarketSubscription
from gateway.read_subscription import ReadSubscription
from gateway.sending.view import View
from gateway.session import FIRST_REQUEST_TIMEOUT, Session, shown_ignored
from gateway.starts import (
    complete_question,
    playback_of,
    positions_by_topic,
    shown_beginning,
    shown_playback,
    store_questions,
)
from gateway.streams.member import Refusal, StoreQuestion
from gateway.subscription import DOCUMENTED, Subscription, Terms, Ticket, reduced_view
from qmt_bridge.errors import BadRequest
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.codes import MARKETS
from qmt_bridge.wire.hints import Ignored, did_you_mean
from qmt_bridge.wire.messages import known_fields
from qmt_bridge.wire.positions import Position
from qmt_bridge.wire.requests import (
    IGNORED_NAMES,
    Options,
    ignored_fields,
)
from qmt_bridge.wire.topics import (
    Topic,
    parse_topic,
)

_OPTIONS = frozenset(Options.__struct_fields__)


class Asked(NamedTuple):
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
        asked: Asked,
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


class Codes:
    """The part shared by the endpoints whose requests name codes: subscribe, unsubscribe, list."""

    always_key: ClassVar[bool] = False
    # What a key has to allow.
    scope: ClassVar[Scope]
    # A sandboxed frame of any page looks like a file, and quotes are the least that it could take.
    to_files: ClassVar[bool] = True
    opts_in: ClassVar[frozenset[str]] = frozenset(("id", "action"))
    parameters: ClassVar[tuple[str, ...]] = PARAMETERS
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

    async def read(self, request: dict[str, Any]) -> Asked:
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
                raise unknown_action(action, *ACTIONS, "unsubscribe", "list")

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
        terms = terms_of(asked.options)
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

    def _want(self, asked: Asked, terms: Terms, view: View | None) -> tuple[dict[Topic, str], dict[Topic, Rejection]]:
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
            **shown_rejections(
                chain(asked.rejected, opened.refused.values()), len(asked.rejected) + len(opened.refused)
            ),
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
        self, request: dict[str, Any], asked: Asked, terms: Terms, questions: Mapping[Topic, StoreQuestion]
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
            ack = head | shown_rejections(asked.rejected, len(asked.rejected)) | {"active": len(self.wanted)}
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
        rejections = shown_rejections(chain(rejected, self._not_subscribed(missing)), len(rejected) + len(missing))
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
            others.setdefault(name, []).append(detail_of(held))
        for topic, name in missing.items():
            reason = f"{name} is not subscribed"
            if name in others:
                reason += f" with {self.detail} {detail_of(topic)}, only with {', '.join(others[name])}"
            yield Rejection(name, "not_subscribed", reason)

    def _by_detail(self, topics: Iterable[tuple[Topic, str]]) -> dict[str, dict[str, list[str]]]:
        """Return the additional field of a frame that names codes: by period or gear_num, if one is not the default."""
        by_detail: dict[str, list[str]] = {}
        for topic, name in topics if self.detail else ():
            by_detail.setdefault(detail_of(topic), []).append(name)
        return {f"by_{self.detail}": by_detail} if by_detail.keys() - {self.usual} else {}

    def _detail_of(self, topic: Topic) -> dict[str, str]:
        """Return the additional field of an error frame: the period or gear_num, if it is not the default."""
        return {self.detail: detail_of(topic)} if self.detail and detail_of(topic) != self.usual else {}

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
        question = complete_question(self.session.host.config.outbox_bytes, len(self.wanted))
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


def detail_of(topic: Topic) -> str:
    """Return the period or gear_num of a topic: `parse_topic` takes ten times as long, and also checks the code."""
    return topic.rsplit("/", 2)[1]


def _hint(name: str, known: Iterable[str]) -> str:
    return did_you_mean(name, known) or f"known are {', '.join(sorted(known))}"


def _begin_together(ticket: Ticket) -> None:
    """Tell a client without an ack what is missing, once all that is played together has been found."""
    for of in ticket.subscriptions:
        if isinstance(of, ReadSubscription) and of.beginning is not None and of.beginning.gap is not None:
            of.gap(of.beginning.gap)
