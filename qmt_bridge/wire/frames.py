"""Frame(topic, stamp, body) to and from its ZeroMQ parts, and the body's encoding.

Pure. A body is encoded once, in the feeder, as JSON: the bytes that a browser receives.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import orjson

from qmt_bridge.errors import WireError, WireVersionError
from qmt_bridge.wire.topics import Topic

# The version of docs/wire.md.
WIRE_VERSION = 2
# epoch, seq, received_ns, published_ns (docs/wire.md)
_STAMP = struct.Struct(">4Q")
STAMP_BYTES = _STAMP.size
_read_stamp = _STAMP.unpack_from
_pack_header = struct.Struct(">BBH").pack
# A batch of whole-market data; one of 5,400 codes would be 2.6 MB and hold up everything behind it. libzmq counts
# messages: with `sockets.HIGH_WATER_MARK` of them at most 256 MiB wait for a consumer that does not read.
BATCH_BYTES = 64 * 1024
# Shorter payloads gain nothing from compression. A window of 4 KB holds several records, which are alike.
DEFLATE_FROM = 128
DEFLATE_WINDOW = 12


def _plain(value: object) -> object:
    # orjson does not take floats of numpy, which are a subclass, and bytes.
    if isinstance(value, float):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return value.hex()
    if isinstance(value, msgspec.Raw):
        return orjson.Fragment(bytes(value))
    if isinstance(value, Mapping):
        return dict(value)
    # numpy's other scalars and its arrays are no subclasses; `tolist` returns them as Python values.
    plain = getattr(value, "tolist", None)
    if callable(plain) and type(found := plain()) in (int, float, bool, str, list):
        return found
    raise TypeError(f"cannot encode {type(value).__name__}")


def _fitting(value: object) -> object:
    """Return `value` with each integer of more than 64 bits, which orjson does not take, as its own text."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(int(value)))
    if isinstance(value, Mapping):
        return {str(name) if type(name) is int else name: _fitting(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting(item) for item in value]
    return value


# Of encoded pieces: 5 us for a hundred, where orjson takes 47 us.
_joiner = msgspec.json.Encoder()
# Not orjson, which makes floats of integers of more than 64 bits.
_decoder = msgspec.json.Decoder()
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
_split_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_split_lists_decoder = msgspec.json.Decoder(dict[str, list[msgspec.Raw]])
_records_decoder = msgspec.json.Decoder(list[msgspec.Raw])


T = TypeVar("T")


def read(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """Return what `decoder` makes of `data`; raise `WireError` for bytes that it cannot read, whatever they are.

    The one place that knows what msgspec raises: its own errors, Python's for text that is not UTF-8, and
    RecursionError for what is nested too deep, also in a field that is skipped.
    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"{len(memoryview(data))} bytes cannot be read: {exc}") from exc


def encode(body: object) -> bytes:
    """Return `body` as JSON; raise TypeError, ValueError or RecursionError if it cannot be.

    NaN and infinity become null, bytes hexadecimal digits; nothing is rounded (docs/websocket.md, "Frames"). What is
    encoded already stays as it is.
    """
    if type(body) is msgspec.Raw:
        return bytes(body)
    try:
        encoded = orjson.dumps(body, _plain)
    except TypeError:
        # Names that are no strings are rare, and to allow them takes half as long again.
        encoded = orjson.dumps(_fitting(body), _plain, orjson.OPT_NON_STR_KEYS)
    # A copy, because what orjson returns keeps its buffer: a tick of 471 bytes would take 8 KB as long as it is kept.
    return bytes(memoryview(encoded))


def decode(body: bytes) -> Any:
    """Return the object that `body` encodes; raise `WireError` if it is not JSON."""
    try:
        return read(_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not JSON: {exc}") from exc


def checked(body: bytes) -> msgspec.Raw:
    """Return a body that is to become a part of another one; raise `WireError` if it is not JSON."""
    try:
        return read(_raw_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not JSON: {exc}") from exc


def split(body: bytes) -> dict[str, msgspec.Raw]:
    """Return a body keyed by code, each value still encoded: a third of the time of decoding it."""
    try:
        return read(_split_decoder, body)
    except WireError as exc:
        raise WireError(f"body is not a map by code: {exc}") from exc


def record_of(body: bytes, code: str) -> msgspec.Raw | None:
    """Return what a body keyed by code has of one code, still encoded; None if it has nothing of it.

    Raise `WireError` for another body.

    Most batches of a market do not have a code, which is seen in half of the time that it takes to split one.
    """
    return split(body).get(code) if b'"%b":' % code.encode() in body else None


def count_codes(body: bytes) -> int:
    """Return how many codes a body has; 0 if it is no object."""
    try:
        return len(split(body))
    except WireError:
        return 0


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


def join(by_code: Mapping[str, msgspec.Raw], limit: int = BATCH_BYTES) -> Iterator[bytes]:
    """Yield bodies of at most `limit` bytes that together hold `by_code`; a larger record has a body of its own."""
    batch: dict[str, msgspec.Raw] = {}
    size = 2
    for code, record in by_code.items():
        added = _name_bytes(code) + len(memoryview(record))
        if batch and size + added > limit:
            yield _joiner.encode(batch)
            batch, size = {}, 2
        batch[code] = record
        size += added
    if batch:
        yield _joiner.encode(batch)


def join_lists(records: Iterable[tuple[str, msgspec.Raw]], limit: int = BATCH_BYTES) -> Iterator[bytes]:
    """Yield bodies of lists by code, of at most `limit` bytes, that together hold `records` of (code, record) in order.

    A larger record has a body of its own.
    """
    batch: dict[str, list[msgspec.Raw]] = {}
    size = 2
    for code, record in records:
        # With the comma behind it; another record of a code needs no name and no brackets.
        added = len(memoryview(record)) + (1 if code in batch else _name_bytes(code) + 2)
        if batch and size + added > limit:
            yield _joiner.encode(batch)
            batch, size = {}, 2
            added = len(memoryview(record)) + _name_bytes(code) + 2
        batch.setdefault(code, []).append(record)
        size += added
    if batch:
        yield _joiner.encode(batch)


def join_all(by_code: Mapping[str, msgspec.Raw]) -> bytes:
    """Return one body that holds `by_code`."""
    return _joiner.encode(by_code)


def join_records(records: Iterable[bytes | msgspec.Raw]) -> bytes:
    """Return the list of encoded `records`."""
    return b"[%b]" % b",".join(records)


def _name_bytes(code: str) -> int:
    """Return the bytes of a name with its quotes, colon and comma."""
    return len(_joiner.encode(code)) + 2


def to_msgpack(value: object) -> bytes:
    """Return a decoded body as MessagePack, for the clients that ask for it; raise TypeError or RecursionError.

    An integer of more than 64 bits, which MessagePack does not have, becomes a float.
    """
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return msgspec.msgpack.encode(_rounded(value))


def _rounded(value: object) -> object:
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        # Too large for a float too: as JavaScript reads it.
        return float(str(value))
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


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
        return _pack_header(first, 126, size) + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


class Frame(msgspec.Struct, eq=False, gc=False):
    """One message: its topic, its position in the topic's sequence, its times, and its encoded body.

    `received_ns` is when the source's callback was entered, `published_ns` when ZeroMQ got it (ns since 1970).
    The garbage collector does not know frames, so nothing that a frame refers to may refer to it: a turn of thousands
    of messages would set the collector off again and again, which took 7 % of a worker.
    """

    topic: Topic
    epoch: int
    seq: int
    received_ns: int
    published_ns: int
    body: bytes
    # The WebSocket frame, once it has been built.
    prepared: bytes | None = None
    # The frame in other forms than its body, cached by the code that renders them.
    seen: dict[Any, Any] | None = None

    def __repr__(self) -> str:
        return f"<Frame {self.topic} seq={self.seq} {len(self.body)} bytes>"

    @classmethod
    def from_parts(cls, parts: Sequence[bytes]) -> Frame:
        """Read the two parts of a ZeroMQ message; raise `WireError` if they are not ours."""
        try:
            head, body = parts
            epoch, seq, received_ns, published_ns = _STAMP.unpack_from(head, len(head) - STAMP_BYTES)
            return cls(Topic(head[:-STAMP_BYTES].decode("ascii")), epoch, seq, received_ns, published_ns, body)
        except (ValueError, struct.error) as exc:
            if _is_version_1(parts):
                raise WireVersionError(1, WIRE_VERSION) from exc
            raise WireError(f"not a frame: {len(parts)} parts of {[len(part) for part in parts][:10]} bytes") from exc

    @classmethod
    def of_topic(cls, topic: Topic, head: bytes, body: bytes) -> Frame:
        """Return the frame of a message whose first part is known to be `topic` and a stamp."""
        epoch, seq, received_ns, published_ns = _read_stamp(head, len(head) - STAMP_BYTES)
        return cls(topic, epoch, seq, received_ns, published_ns, body)

    def to_parts(self) -> list[bytes]:
        """Return the two parts to send: topic and stamp, and the body."""
        stamp = _STAMP.pack(self.epoch, self.seq, self.received_ns, self.published_ns)
        return [self.topic.encode("ascii") + stamp, self.body]

    def with_body(self, body: bytes) -> Frame:
        """Return a frame with the same stamp around another body."""
        return Frame(self.topic, self.epoch, self.seq, self.received_ns, self.published_ns, body)

    @property
    def data(self) -> Any:
        """Return the decoded body."""
        return decode(self.body)

    @property
    def framed(self) -> bytes:
        """Return the body as a WebSocket frame, the same bytes for every client; built once."""
        if self.prepared is None:
            self.prepared = framed(self.body)
        return self.prepared


class LastValue(Frame):
    """A last value, or a part of one: it is no news, so it has no times, and a newer one replaces it as a whole."""


def is_head(part: bytes) -> bool:
    """Return whether the first part of a message may be ours: a topic and a stamp."""
    return part[-STAMP_BYTES - 1 : -STAMP_BYTES] == b"/"


def _is_version_1(parts: Sequence[bytes]) -> bool:
    """Return whether a message is one of version 1, which had three parts: topic, stamp, body."""
    return len(parts) == 3 and parts[0][-1:] == b"/" and len(parts[1]) == STAMP_BYTES
