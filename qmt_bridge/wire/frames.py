"""Frame(topic, stamp, body) to and from its ZeroMQ parts, and the body's encodings.

Pure. A body is encoded once, in the feeder; a gateway worker renders JSON at most once per frame, and only
when a client needs it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import orjson

from qmt_bridge.errors import WireError
from qmt_bridge.wire.topics import Topic

# epoch, seq, received_ns, published_ns (docs/wire.md)
_STAMP = struct.Struct(">4Q")
STAMP_BYTES = _STAMP.size
# A batch of whole-market data; one of 5,400 codes would be 2.6 MB and hold up everything behind it. libzmq counts
# messages: with `sockets.HIGH_WATER_MARK` of them at most 256 MiB wait for a consumer that does not read.
BATCH_BYTES = 64 * 1024
# Shorter payloads gain nothing from compression. A window of 4 KB holds several records, which are alike.
DEFLATE_FROM = 128
DEFLATE_WINDOW = 12


def _plain(value: object) -> object:
    # bson's Int64 and numpy's float64 are subclasses, which msgspec does not take as they are.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    # numpy's other scalars and its arrays are no subclasses; `tolist` returns them as Python values.
    plain = getattr(value, "tolist", None)
    if callable(plain) and type(found := plain()) in (int, float, bool, str, list):
        return found
    raise TypeError(f"cannot encode {type(value).__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder()
_split_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_split_lists_decoder = msgspec.msgpack.Decoder(dict[str, list[msgspec.Raw]])
_records_decoder = msgspec.msgpack.Decoder(list[msgspec.Raw])


T = TypeVar("T")


def read(decoder: msgspec.msgpack.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """Return what `decoder` makes of `data`; raise `WireError` for bytes that it cannot read, whatever they are.

    The one place that knows what msgspec raises: its own errors, Python's for text that is not UTF-8, and
    RecursionError for what is nested too deep, also in a field that is skipped.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"{len(memoryview(data))} bytes cannot be read: {exc}") from exc


def encode(body: object) -> bytes:
    """Return `body` as MessagePack; raise TypeError, ValueError or OverflowError if it cannot be."""
    return _encoder.encode(body)


def decode(body: bytes) -> Any:
    """Return the object that `body` encodes; raise `WireError` if it is not MessagePack."""
    try:
        return read(_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not MessagePack: {exc}") from exc


def split(body: bytes) -> dict[str, msgspec.Raw]:
    """Return a body keyed by code, each value still encoded: 0.3 us a tick, a sixth of decoding it."""
    try:
        return read(_split_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not a map by code: {exc}") from exc


def split_lists(body: bytes) -> dict[str, list[msgspec.Raw]]:
    """Return a body of lists of records by code, each record still encoded; raise `WireError` for another body."""
    try:
        return read(_split_lists_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not a map of lists by code: {exc}") from exc


def records(encoded: msgspec.Raw) -> list[msgspec.Raw]:
    """Return the records of a list, each still encoded; raise `WireError` if it is not a list."""
    try:
        return read(_records_decoder, encoded)
    except WireError as exc:
        raise WireError(f"not a list of records: {exc}") from exc


def count_codes(body: bytes) -> int:
    """Return how many codes a body has, without reading more of it than its first bytes; 0 if it is no map."""
    first = body[0] if body else 0
    if 0x80 <= first <= 0x8F:
        return first & 0x0F
    # The headers of MessagePack's longer maps.
    size = {0xDE: 2, 0xDF: 4}.get(first, 0)
    return int.from_bytes(body[1 : 1 + size], "big")


def join(by_code: Mapping[str, msgspec.Raw], limit: int = BATCH_BYTES) -> Iterator[bytes]:
    """Yield bodies of at most `limit` bytes that together hold `by_code`; a larger record has a body of its own."""
    batch: dict[str, msgspec.Raw] = {}
    size = 5
    for code, record in by_code.items():
        # A map header is at most 5 bytes, that of a code of up to 255 bytes at most 2.
        added = len(code.encode()) + 2 + len(memoryview(record))
        if batch and size + added > limit:
            yield _encoder.encode(batch)
            batch, size = {}, 5
        batch[code] = record
        size += added
    if batch:
        yield _encoder.encode(batch)


def join_lists(records: Iterable[tuple[str, msgspec.Raw]], limit: int = BATCH_BYTES) -> Iterator[bytes]:
    """Yield bodies of lists by code, of at most `limit` bytes, that together hold `records` of (code, record) in order.

    A larger record has a body of its own.
    """
    batch: dict[str, list[msgspec.Raw]] = {}
    size = 5
    for code, record in records:
        # As in `join`, and at most 5 bytes for the header of a list.
        added = len(memoryview(record)) + (0 if code in batch else len(code.encode()) + 7)
        if batch and size + added > limit:
            yield _encoder.encode(batch)
            batch, size = {}, 5
            added = len(memoryview(record)) + len(code.encode()) + 7
        batch.setdefault(code, []).append(record)
        size += added
    if batch:
        yield _encoder.encode(batch)


def to_json(value: object) -> bytes:
    """Return `value` as JSON: NaN and infinity become null, nothing is rounded (docs/websocket.md, "Frames")."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=_json_default)


def _json_default(value: object) -> object:
    # The only MessagePack types without a JSON form are bytes and extensions.
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"cannot render {type(value).__name__}")


def framed(payload: bytes, binary: bool = False, deflated: bool = False) -> bytes:
    """Return `payload` as a whole WebSocket frame of a server, text or binary; not masked (RFC 6455, 5.2).

    `deflated` is for clients with the extension permessage-deflate: without a context that spans messages
    (RFC 7692, 7.1.1.1) the compressed frame too is the same for all of them. A short payload is not compressed.
    """
    first = 0x82 if binary else 0x81
    if deflated and len(payload) >= DEFLATE_FROM:
        deflate = zlib.compressobj(wbits=-DEFLATE_WINDOW)
        # The sync marker at the end is not sent (7.2.1).
        payload = (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
        first |= 0x40
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def render(body: object) -> bytes:
    """Return a decoded body as JSON; raise `WireError` for one without such a form (see `Frame.json`)."""
    try:
        return to_json(body)
    except (TypeError, ValueError, RecursionError) as exc:
        raise WireError(f"body has no JSON form: {exc}") from exc


class Frame:
    """One message: its topic, its position in the topic's sequence, its times, and its encoded body.

    `received_ns` is when the source's callback was entered, `published_ns` when ZeroMQ got it (ns since 1970).
    """

    __slots__ = ("_framed", "_json", "body", "epoch", "published_ns", "received_ns", "seen", "seq", "topic")

    def __init__(self, topic: Topic, epoch: int, seq: int, received_ns: int, published_ns: int, body: bytes) -> None:
        self.topic = topic
        self.epoch = epoch
        self.seq = seq
        self.received_ns = received_ns
        self.published_ns = published_ns
        self.body = body
        self._json: bytes | None = None
        self._framed: bytes | None = None
        # The frame in other forms than `json`, cached by the code that renders them.
        self.seen: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<Frame {self.topic} seq={self.seq} {len(self.body)} bytes>"

    @classmethod
    def from_parts(cls, parts: Sequence[bytes]) -> Frame:
        """Read the three parts of a ZeroMQ message; raise `WireError` if they are not ours."""
        try:
            topic, stamp, body = parts
            epoch, seq, received_ns, published_ns = _STAMP.unpack(stamp)
            return cls(Topic(topic.decode("ascii")), epoch, seq, received_ns, published_ns, body)
        except (ValueError, struct.error) as exc:
            raise WireError(f"not a frame: {len(parts)} parts of {[len(part) for part in parts]} bytes") from exc

    def to_parts(self) -> list[bytes]:
        """Return the three parts to send."""
        stamp = _STAMP.pack(self.epoch, self.seq, self.received_ns, self.published_ns)
        return [self.topic.encode("ascii"), stamp, self.body]

    def with_body(self, body: bytes) -> Frame:
        """Return a frame with the same stamp around another body."""
        return Frame(self.topic, self.epoch, self.seq, self.received_ns, self.published_ns, body)

    @property
    def data(self) -> Any:
        """Return the decoded body."""
        return decode(self.body)

    @property
    def json(self) -> bytes:
        """Return the body as a WebSocket client of the documented layer gets it; rendered once.

        Raise `WireError` for a body that has no JSON form: not MessagePack, or nested 254 deep (orjson's limit).
        """
        if self._json is None:
            self._json = render(self.data)
        return self._json

    @property
    def framed(self) -> bytes:
        """Return `json` as a WebSocket frame, the same bytes for every client; built once."""
        if self._framed is None:
            self._framed = framed(self.json)
        return self._framed


class LastValue(Frame):
    """A last value, or a part of one: it is no news, so it has no times, and a newer one replaces it as a whole."""

    __slots__ = ()
