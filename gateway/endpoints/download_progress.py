"""`/ws/download_progress`: one download a socket."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from gateway.costs.shares import Download
from gateway.endpoints.actions import ACTIONS, PARAMETERS, unknown_action
from gateway.endpoints.rejections import ERRORS_A_REQUEST, topics_of
from gateway.session import FIRST_REQUEST_TIMEOUT, Ended, Session
from gateway.streams.member import Refusal
from gateway.subscription import Subscription
from qmt_bridge.closes import BAD_REQUEST, FINISHED, UPSTREAM_AWAY, UPSTREAM_FAILED, Ending
from qmt_bridge.errors import BadRequest, ErrorCode
from qmt_bridge.keys.key import Scope
from qmt_bridge.wire.frames import Frame
from qmt_bridge.wire.requests import (
    DownloadStart,
    ignored_fields,
    read_request,
)
from qmt_bridge.wire.topics import (
    Topic,
    check_period,
    quote_topic,
)


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
    parameters: ClassVar[tuple[str, ...]] = PARAMETERS
    first_request_timeout: ClassVar[float | None] = FIRST_REQUEST_TIMEOUT

    def __init__(self, session: Session) -> None:
        self.session = session
        session.on_refused = self._refused
        self._started = False

    async def handle(self, request: dict[str, Any]) -> None:
        """Start the download that the first request asks for."""
        action = request.get("action", "subscribe")
        if action != "subscribe":
            raise unknown_action(action, *ACTIONS, told="; close the socket to end the download")
        if self._started:
            raise BadRequest("bad_request", "this socket has a download already; open another socket for the next one")
        asked = read_request(request, DownloadStart)
        period = check_period(asked.period)
        named, rejected = await topics_of(asked.stocks, quote_topic)
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
