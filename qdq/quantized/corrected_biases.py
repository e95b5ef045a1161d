"""The biases of a corrected model before their correction, in its metadata, and their return.

Only the main graph has corrected biases. An unused initializer would be removed by other tools, so
the originals are in the model's `metadata_props`.
"""

from __future__ import annotations

import zlib

import msgspec
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from qdq.arrays import Array
from qdq.errors import ModelError
from qdq.graph.metadata import BIASES_KEY
from qdq.graph.model_location import ModelLocation
from qdq.graph.pairs import stored_tensors

_FIX = "Quantize the float model again."


class ChangedBias(msgspec.Struct, frozen=True, tag="changed"):
    """A stored bias with other values than in the float model."""

    #: The name of the initializer, or the output of the Constant.
    tensor: str
    #: The initializer (TensorProto) or the Constant (NodeProto) of the float model.
    original: bytes
    #: The checksum of the corrected values.
    checksum: int


class AddedBias(msgspec.Struct, frozen=True, tag="added"):
    """A bias that the float model does not have, or that other nodes read as well."""

    #: The name of the new initializer.
    tensor: str
    #: The first output of the node that reads it.
    node: str
    slot: int
    #: The tensor that the node reads there in the float model; None where it has no such input.
    original: str | None
    #: The checksum of its values.
    checksum: int


CorrectedBias = ChangedBias | AddedBias


def checksum_values(values: Array) -> int:
    """Return the CRC-32 of an array's values."""
    return zlib.crc32(values.tobytes())


def write_corrected_biases(model: ModelProto, biases: tuple[CorrectedBias, ...]) -> None:
    """Write the originals of corrected biases into a model's metadata."""
    value = msgspec.json.encode(biases).decode()
    model.metadata_props.add(key=BIASES_KEY, value=value)


def read_corrected_biases(model: ModelProto, name: str) -> tuple[CorrectedBias, ...]:
    """Return the corrected biases of a model; raises ModelError for damaged metadata."""
    for entry in model.metadata_props:
        if entry.key != BIASES_KEY:
            continue
        try:
            return msgspec.json.decode(entry.value.encode(), type=tuple[CorrectedBias, ...])
        except (msgspec.MsgspecError, ValueError) as error:
            raise ModelError(
                f"{name}: its metadata {BIASES_KEY!r} cannot be read: {error}. {_FIX}"
            ) from error
    return ()


def restore_biases(model: ModelProto, location: ModelLocation) -> bool:
    """Give a model the biases that it had before their correction; return whether it had others.

    Raises ModelError, beginning with the model's name, where they do not fit it any longer.
    """
    name = location.name
    biases = read_corrected_biases(model, name)
    if not biases:
        return False
    graph = model.graph
    stored = stored_tensors(graph)
    producers = {node.output[0]: node for node in graph.node if node.output}
    added: set[str] = set()
    for bias in biases:
        _require_unchanged(stored.get(bias.tensor), bias, location)
        if isinstance(bias, AddedBias):
            _restore_input(producers.get(bias.node), bias, name)
            added.add(bias.tensor)
        else:
            _restore_tensor(graph, producers.get(bias.tensor), bias, name)
    kept = GraphProto(initializer=[t for t in graph.initializer if t.name not in added])
    if len(kept.initializer) < len(graph.initializer):
        del graph.initializer[:]
        graph.initializer.extend(kept.initializer)
    return True


def describe_corrected_biases(value: str) -> str:
    """Return a short text for the metadata of corrected biases; other metadata for other values."""
    count = value.count('"checksum"')
    return f"{count} corrected biases ({zlib.crc32(value.encode()):08x})"


def read_original_initializers(model: ModelProto, name: str = "model") -> dict[str, TensorProto]:
    """Return the initializers before their correction, by name."""
    stored = {tensor.name for tensor in model.graph.initializer}
    originals: dict[str, TensorProto] = {}
    for bias in read_corrected_biases(model, name):
        if isinstance(bias, ChangedBias) and bias.tensor in stored:
            originals[bias.tensor] = _parse_original(bias, False, name)
    return originals


def _parse_original(bias: ChangedBias, is_node: bool, name: str) -> TensorProto | NodeProto:
    message = NodeProto() if is_node else TensorProto()
    try:
        message.ParseFromString(bias.original)
    except DecodeError as error:
        raise _misfit(name, bias.tensor, "is damaged") from error
    stored_name = next(iter(message.output), "") if is_node else message.name
    if stored_name != bias.tensor:
        raise _misfit(name, bias.tensor, "is damaged")
    return message


def _restore_tensor(
    graph: GraphProto, constant: NodeProto | None, bias: ChangedBias, name: str
) -> None:
    if constant is not None:
        original = _parse_original(bias, True, name)
        constant.CopyFrom(original)
        return
    original = _parse_original(bias, False, name)
    for tensor in graph.initializer:
        if tensor.name == bias.tensor:
            tensor.CopyFrom(original)


def _require_unchanged(
    tensor: TensorProto | None, bias: CorrectedBias, location: ModelLocation
) -> None:
    """Raise ModelError unless a bias has its corrected values, or none as in a light copy."""
    if tensor is None:
        raise _misfit(location.name, bias.tensor, "is not in the graph")
    is_light = not any(field.name.endswith("data") for field, _ in tensor.ListFields())
    if is_light:
        return
    if checksum_values(location.read_values(tensor)) != bias.checksum:
        raise _misfit(location.name, bias.tensor, "has changed since its correction")


def _restore_input(node: NodeProto | None, bias: AddedBias, name: str) -> None:
    inputs = () if node is None else tuple(node.input)
    if node is None or inputs[bias.slot : bias.slot + 1] != (bias.tensor,):
        raise _misfit(name, bias.tensor, f"is not read by the node of {bias.node!r}")
    if bias.original is None:
        del node.input[bias.slot :]
    else:
        node.input[bias.slot] = bias.original


def _misfit(name: str, tensor: str, fact: str) -> ModelError:
    return ModelError(
        f"{name}: its metadata {BIASES_KEY!r} does not fit: the bias {tensor!r} {fact}. {_FIX}"
    )
