"""How much structure a protobuf message has, counted on its bytes, before anything is built from them.

Two bytes on the wire can be a message, which takes a hundred in memory: 16 MiB of empty tensors take 500 MB and half a
second, in which protobuf lets no other thread run. Long bytes, texts and packed numbers are cheap at any length. So the
fields are counted, up to a limit, and cheap ones are skipped over: an honest request has a handful a tensor.

Source: the protobuf encoding, https://protobuf.dev/programming-guides/encoding/. What is malformed is left to the
parser, which says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from google.protobuf.descriptor import Descriptor

from backends.errors import InvalidInput

MAX_FIELDS = 10_000
"""Most fields in one message, those of the messages in it included; counting that many takes some milliseconds."""

_COUNTED_FROM_BYTES = 64 * 1024


def check_structure(kind: Descriptor, data: bytes) -> None:
    """Refuse *data*, a message of *kind*, where it is long and has too many fields.

    Raises:
        InvalidInput: they are more than `MAX_FIELDS`.
    """
    if len(data) > _COUNTED_FROM_BYTES and _fields(kind, data) > MAX_FIELDS:
        raise InvalidInput(
            f"the message has more than {MAX_FIELDS} fields; send tensors raw, which takes one field each"
        )


def _fields(kind: Descriptor, data: bytes) -> int:
    """How many fields *data* has, up to one more than `MAX_FIELDS`; as far as it is well-formed."""
    count = 0
    open_messages = [(kind, 0, len(data))]
    while open_messages:
        kind, at, end = open_messages.pop()
        inner = _messages(kind)
        while at < end and count <= MAX_FIELDS:
            count += 1
            tag, at = _varint(data, at)
            match tag & 7:
                case 0:  # a varint
                    _, at = _varint(data, at)
                case 1:  # 64 bits
                    at += 8
                case 2:  # bytes, text, packed numbers or a message, behind their length
                    length, at = _varint(data, at)
                    if tag >> 3 in inner:
                        open_messages.append((inner[tag >> 3], at, min(at + length, end)))
                    at += length
                case 5:  # 32 bits
                    at += 4
                case _:  # a group, which no message of ours has: its fields are counted as if they stood beside it
                    pass
    return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at *at*, and where it ends; where none ends, the end of *data*, which stops the count."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    return value, len(data)


@cache
def _messages(kind: Descriptor) -> Mapping[int, Descriptor]:
    """The fields of *kind* that hold messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}
