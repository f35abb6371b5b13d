"""`/ws/formula`: values of formulas."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from gateway.endpoints.actions import ACTIONS, PARAMETERS, unknown_action
from gateway.endpoints.terms import terms_of
from gateway.read_subscription import ReadSubscription
from gateway.session import FIRST_REQUEST_TIMEOUT, Session, shown_ignored
from gateway.starts import (
    positions_by_topic,
    shown_beginning,
    shown_playback,
    store_questions,
)
from gateway.streams.member import Refusal
from gateway.subscription import Subscription, Ticket
from qmt_bridge.errors import BadRequest
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.codes import check_code
from qmt_bridge.wire.requests import (
    FormulaRequest,
    FormulaUnsubscribe,
    ignored_fields,
    read_request,
)
from qmt_bridge.wire.topics import (
    FormulaSpec,
    Topic,
    formula_spec,
    formula_topic,
    parse_topic,
)

# What a formula's request may leave out.
_OPTIONAL = frozenset(("period", "count", "dividend_type", "params"))


class Formula:
    """`/ws/formula`: values of formulas; every subscription has a `seq_id`, unique in its socket."""

    always_key: ClassVar[bool] = False
    scope: ClassVar[Scope] = "formula"
    to_files: ClassVar[bool] = False
    # The documented request has an action on this URL, so an action does not show that the client opts in.
    opts_in: ClassVar[frozenset[str]] = frozenset(("id",))
    parameters: ClassVar[tuple[str, ...]] = PARAMETERS
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
                raise unknown_action(action, *ACTIONS, "unsubscribe", "list")

    def _subscribe(self, request: dict[str, Any]) -> None:
        asked = read_request(request, FormulaRequest)
        if asked.fields:
            raise BadRequest("bad_request", "fields are for quotes and depth; all values of a formula are sent")
        terms = terms_of(asked)
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


def _formula(topic: Topic) -> dict[str, Any]:
    """Return the request of a formula as `list` shows it: its name and code, and what is not the default."""
    spec = formula_spec(parse_topic(topic))
    usual = FormulaSpec(spec.formula_name, spec.stock_code)
    shown = msgspec.structs.asdict(spec)
    return {name: value for name, value in shown.items() if name not in _OPTIONAL or value != getattr(usual, name)}


def _formula_name(topic: Topic) -> dict[str, str]:
    spec = formula_spec(parse_topic(topic))
    return {"formula_name": spec.formula_name, "stock_code": spec.stock_code}
