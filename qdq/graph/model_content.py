"""The bytes of a model's file, in pieces.

protobuf's own serialisation of a model of 100 MB holds it three times in memory for a moment, which
takes longer than to write it. Here the values of large weights are left out of the serialisation,
and come as pieces of their own where the file has them (protobuf encoding: a field is a tag and a
value; the value of a message or of bytes begins with its length).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, ModelProto, TensorProto

from qdq.graph.source import canonical_bytes, copy_fields, copy_with_initializers, too_large
from qdq.graph.tensor_sizes import count_value_bytes

#: The least bytes of values that become a piece of their own.
_LEAST_PIECE = 1 << 16

#: The most bytes of a message, as protobuf has it.
_LARGEST_MESSAGE = (1 << 31) - 1

_GRAPH = ModelProto.GRAPH_FIELD_NUMBER
_INITIALIZER = GraphProto.INITIALIZER_FIELD_NUMBER
_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER

#: The kinds of value that the low bits of a tag name (protobuf encoding, "message structure").
_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 5: 4}
_KIND_BITS, _KIND_MASK = 3, 0b111

#: A byte of a number has seven bits of it, and one that states whether more follow.
_LOW_BITS = 0x7F


class _Field(NamedTuple):
    """A field of a message: where it begins, and where its value does and ends."""

    number: int
    start: int
    value: int
    end: int


class _Values(NamedTuple):
    """The values of a weight, which are read when they are written."""

    tensor: TensorProto
    size: int


_Piece: TypeAlias = bytes | _Values


def iterate_content(model: ModelProto) -> Iterator[bytes]:
    """Yield the bytes of `canonical_bytes(model)`, one piece after another.

    Raises ModelError, before the first one, for a model that is larger than 2 GiB.
    """
    large: dict[int, _Values] = {}
    for position, tensor in enumerate(model.graph.initializer):
        if _is_large(tensor):
            large[position] = _Values(tensor, len(tensor.raw_data))
    messages = (model, model.graph, *(values.tensor for values in large.values()))
    if not large or _has_unknown_fields(messages):
        yield canonical_bytes(model)
        return
    outline = canonical_bytes(_copy_without_values(model))
    pieces = _insert_values(outline, large)
    if _count_bytes(pieces) > _LARGEST_MESSAGE:
        raise too_large(model)
    for piece in pieces:
        yield piece if isinstance(piece, bytes) else piece.tensor.raw_data


def _is_large(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") and count_value_bytes(tensor) >= _LEAST_PIECE


def _has_unknown_fields(messages: Iterable[Message]) -> bool:
    """Whether a message holds fields of a newer ONNX, which cannot be copied one by one."""
    return any(len(UnknownFieldSet(message)) for message in messages)


def _copy_without_values(model: ModelProto) -> ModelProto:
    """Return a copy of a model in which the values of large weights are empty."""

    def empty(tensor: TensorProto) -> TensorProto:
        if not _is_large(tensor):
            return tensor
        emptied = TensorProto()
        copy_fields(tensor, emptied, excluded="raw_data")
        emptied.raw_data = b""
        return emptied

    return copy_with_initializers(model, empty)


def _insert_values(outline: bytes, large: Mapping[int, _Values]) -> list[_Piece]:
    """Return the pieces of a serialisation, with values for the weights that have none in it."""
    graph = _find_field(outline, 0, len(outline), _GRAPH)
    pieces: list[_Piece] = []
    position, copied = 0, graph.value
    for field in _iterate_fields(outline, graph.value, graph.end):
        if field.number != _INITIALIZER:
            continue
        if position in large:
            pieces.append(outline[copied : field.start])
            pieces += _fill_weight(outline, field, large[position])
            copied = field.end
        position += 1
    pieces.append(outline[copied : graph.end])
    header = _encode_header(_GRAPH, _count_bytes(pieces))
    return [outline[: graph.start] + header, *pieces, outline[graph.end :]]


def _fill_weight(outline: bytes, weight: _Field, values: _Values) -> list[_Piece]:
    """Return the pieces of one initializer."""
    empty = _find_field(outline, weight.value, weight.end, _RAW_DATA)
    before = outline[weight.value : empty.start] + _encode_header(_RAW_DATA, values.size)
    after = outline[empty.end : weight.end]
    header = _encode_header(_INITIALIZER, len(before) + values.size + len(after))
    return [header + before, values, after]


def _count_bytes(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.size for piece in pieces)


def _find_field(content: bytes, start: int, end: int, number: int) -> _Field:
    """Return the field of this number, which the message from `start` to `end` has."""
    return next(field for field in _iterate_fields(content, start, end) if field.number == number)


def _iterate_fields(content: bytes, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message from `start` to `end`."""
    while start < end:
        tag, value = _decode_varint(content, start)
        kind = tag & _KIND_MASK
        if kind == _LENGTH:
            length, value = _decode_varint(content, value)
            next_start = value + length
        elif kind == _VARINT:
            _, next_start = _decode_varint(content, value)
        else:
            next_start = value + _FIXED_BYTES[kind]
        yield _Field(tag >> _KIND_BITS, start, value, next_start)
        start = next_start


def _decode_varint(content: bytes, position: int) -> tuple[int, int]:
    """Return the number at a position, and the position after it: seven bits a byte, low first."""
    number, shift = 0, 0
    while True:
        byte = content[position]
        position += 1
        number |= (byte & _LOW_BITS) << shift
        if byte <= _LOW_BITS:
            return number, position
        shift += 7


def _encode_header(number: int, length: int) -> bytes:
    """Return the tag and the length of a field of bytes, or of a message."""
    return _encode_varint(number << _KIND_BITS | _LENGTH) + _encode_varint(length)


def _encode_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > _LOW_BITS:
        encoded.append(number & _LOW_BITS | _LOW_BITS + 1)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
