"""The content of a model file: inputs and outputs, operators, layers, pairs and bytes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from onnx import ModelProto, TensorProto, ValueInfoProto

from qdq.graph.bodies import all_nodes, all_tensors, qualified_name
from qdq.graph.float_types import FLOAT_TYPES
from qdq.graph.index import GraphIndex, Node
from qdq.graph.metadata import EQUALIZATION_KEY
from qdq.graph.operators import WEIGHTED
from qdq.graph.shape_inference import declared_type
from qdq.graph.source import ModelLike, Source
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantized.pair_diff import read_metadata
from qdq.quantized.pair_format import read_format
from qdq.quantizer import ELEMENT_TYPES

#: Bits of a value of the types that do not fill their bytes, and of all types by default.
_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
_BITS |= {"FLOAT6E2M3": 6, "FLOAT6E3M2": 6, "DOUBLE": 64, "INT64": 64, "UINT64": 64}
_BITS |= {"COMPLEX64": 64, "COMPLEX128": 128, "FLOAT": 32, "INT32": 32, "UINT32": 32}
_BITS |= {"FLOAT16": 16, "BFLOAT16": 16, "INT16": 16, "UINT16": 16}
_BYTE = 8

_LABELS = {item.code: item.label for item in FLOAT_TYPES.values()} | {TensorProto.DOUBLE: "FP64"}

#: The precision of a layer whose types cannot be inferred.
_UNKNOWN = "unknown"

_DATA_SLOT, _WEIGHT_SLOT = 0, 1


class InspectedTensor(msgspec.Struct, frozen=True):
    """An input or an output of a model."""

    name: str
    #: ONNX's name of the element type in lower case, such as ``float`` for FP32; "" for no tensor.
    type: str
    #: Sizes, names of open dimensions, and "?" for those without a name; null for an unknown rank.
    shape: tuple[int | str, ...] | None


class StoredType(msgspec.Struct, frozen=True):
    """The tensors of one element type that a model stores, also in external data."""

    #: ONNX's name of the type in lower case.
    type: str
    tensors: int
    bytes: int


class ExternalFile(msgspec.Struct, frozen=True):
    """A file with external data."""

    #: The path relative to the model's folder.
    location: str
    bytes: int


class InspectedLayer(msgspec.Struct, frozen=True):
    """A node that multiplies by weights or by another tensor."""

    node: str
    op: str
    #: ``INT8``, ``FP8`` and so on where both operands have pairs or the weight is INT4 in blocks;
    #: else the float type of the layer, such as ``FP16``.
    precision: str
    #: How the first operand is quantized, such as ``int8``; "" for no pair.
    data: str
    #: The same for the second operand.
    weight: str
    #: The shape of the second operand; null where it is unknown.
    weight_shape: tuple[int | str, ...] | None
    #: The rules written on its pairs.
    rules: str


class Inspection(msgspec.Struct, frozen=True):
    """The content of a model file."""

    model: str
    #: The size of the file, without external data.
    file_bytes: int
    external_data: tuple[ExternalFile, ...]
    #: SHA-256 of the file and its external data.
    digest: str
    #: As the file has it, like the operator sets; a note says where loading raises it.
    ir_version: int
    #: The version of each operator set by domain; "ai.onnx" is ONNX's own.
    opsets: Mapping[str, int]
    #: The tool that wrote the file, and its version.
    producer: str
    inputs: tuple[InspectedTensor, ...]
    outputs: tuple[InspectedTensor, ...]
    #: How often each operator occurs, bodies included, the most frequent first.
    operators: Mapping[str, int]
    #: The stored tensors by type, the most bytes first.
    stored: tuple[StoredType, ...]
    #: How many weighted layers have each precision.
    precisions: Mapping[str, int]
    #: How many inputs of layers have a pair of each element type.
    pairs: Mapping[str, int]
    #: What qdq recorded in the model: targets, rules, method, data and so on, by key.
    recorded: Mapping[str, str]
    #: What qdq changes when it loads the file, one sentence each.
    notes: tuple[str, ...]
    layers: tuple[InspectedLayer, ...]


def inspect(model: ModelLike) -> Inspection:
    """Return the content of a float or quantized model.

    Runs nothing. Raises ModelError for a model that cannot be read.
    """
    quantized = QuantizedModel(model)
    source = quantized.original
    proto = source.model
    operators = Counter(_operator_name(node) for _, node in all_nodes(proto.graph))
    layers = tuple(_list_layers(quantized))
    pairs = Counter(_format_name(edge) for edge in quantized.edges)
    return Inspection(
        model=source.name,
        file_bytes=_file_bytes(source),
        external_data=tuple(_list_external_files(source)),
        digest=source.digest,
        ir_version=source.given_ir_version or proto.ir_version,
        opsets=_read_opsets(source),
        producer=f"{proto.producer_name} {proto.producer_version}".strip(),
        inputs=_list_inputs(proto),
        outputs=tuple(map(_describe_value, proto.graph.output)),
        operators=dict(operators.most_common()),
        stored=_count_stored(proto),
        precisions=dict(Counter(layer.precision for layer in layers).most_common()),
        pairs=dict(pairs.most_common()),
        recorded=_read_recorded(quantized),
        notes=source.notes,
        layers=layers,
    )


def _operator_name(node: object) -> str:
    domain, op = getattr(node, "domain", ""), getattr(node, "op_type", "")
    return op if domain in ("", "ai.onnx") else f"{domain}.{op}"


def _file_bytes(source: Source) -> int:
    if source.stamp is not None:
        return source.stamp[0]
    return int(source.model.ByteSize())


def _list_external_files(source: Source) -> Iterator[ExternalFile]:
    folder = source.folder or Path()
    for location in source.external_files:
        yield ExternalFile(location, (folder / location).stat().st_size)


def _read_opsets(source: Source) -> dict[str, int]:
    """Return the operator sets of the file; that of ONNX may have been raised since."""
    opsets = {entry.domain or "ai.onnx": entry.version for entry in source.model.opset_import}
    if source.given_opset:
        opsets["ai.onnx"] = source.given_opset
    return opsets


def _list_inputs(model: ModelProto) -> tuple[InspectedTensor, ...]:
    """Return the inputs of a model without its initializers, which IR 3 lists as inputs too."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    return tuple(map(_describe_value, inputs))


def _describe_value(value: ValueInfoProto) -> InspectedTensor:
    code, _ = declared_type(value)
    tensor_type = value.type.tensor_type
    if not tensor_type.HasField("shape"):
        return InspectedTensor(value.name, _type_name(code), None)
    sizes: list[int | str] = []
    for dim in tensor_type.shape.dim:
        sizes.append(dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?")
    return InspectedTensor(value.name, _type_name(code), tuple(sizes))


def _type_name(code: int) -> str:
    if code == TensorProto.UNDEFINED:
        return ""
    name: str = TensorProto.DataType.Name(code)
    return name.lower()


def _count_stored(model: ModelProto) -> tuple[StoredType, ...]:
    counts: Counter[str] = Counter()
    sizes: defaultdict[str, int] = defaultdict(int)
    for tensor in all_tensors(model.graph):
        name = _type_name(tensor.data_type)
        counts[name] += 1
        sizes[name] += _tensor_bytes(tensor)
    types = [StoredType(name, count, sizes[name]) for name, count in counts.items()]
    return tuple(sorted(types, key=lambda stored: (-stored.bytes, stored.type)))


def _tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes of a tensor's values, wherever they are stored."""
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    count = 1
    for size in tensor.dims:
        count *= size
    bits = _BITS.get(TensorProto.DataType.Name(tensor.data_type), _BYTE)
    return -(-count * bits // _BYTE)


def _read_recorded(quantized: QuantizedModel) -> dict[str, str]:
    recorded = read_metadata(quantized)
    if EQUALIZATION_KEY in recorded:
        size = len(recorded[EQUALIZATION_KEY])
        recorded[EQUALIZATION_KEY] = f"the channel factors of equalized weights ({size} characters)"
    return recorded


def _list_layers(quantized: QuantizedModel) -> Iterator[InspectedLayer]:
    """Yield the weighted layers of the float graph and its bodies."""
    pairs: dict[tuple[str, str, int], QuantizedEdge] = {}
    for pair in (*quantized.edges, *quantized.captured_edges):
        pairs[pair.edge.graph, pair.edge.node, pair.edge.slot] = pair
    for path, scope in quantized.index.scopes.items():
        for node in scope.nodes:
            if node.op not in WEIGHTED or len(node.inputs) <= _WEIGHT_SLOT:
                continue
            data = pairs.get((path, node.label, _DATA_SLOT))
            weight = pairs.get((path, node.label, _WEIGHT_SLOT))
            yield _make_layer(scope, node, data, weight)


def _make_layer(
    scope: GraphIndex, node: Node, data: QuantizedEdge | None, weight: QuantizedEdge | None
) -> InspectedLayer:
    rules: dict[str, None] = {}
    for pair in filter(None, (data, weight)):
        rules.update(dict.fromkeys(filter(None, pair.pair.rules.split(", "))))
    shape = scope.shape(node.inputs[_WEIGHT_SLOT])
    return InspectedLayer(
        node=qualified_name(scope.path, node.label),
        op=node.op,
        precision=_name_precision(scope, node, data, weight),
        data=_describe_format(data),
        weight=_describe_format(weight),
        weight_shape=None if shape is None else tuple(_size(size) for size in shape),
        rules=", ".join(rules),
    )


def _size(size: int | str | None) -> int | str:
    return "?" if size is None else size


def _name_precision(
    scope: GraphIndex, node: Node, data: QuantizedEdge | None, weight: QuantizedEdge | None
) -> str:
    if data is not None and weight is not None:
        labels = dict.fromkeys((_type_label(data), _type_label(weight)))
        return " x ".join(labels)
    if weight is not None and weight.pair.block_size:
        return _type_label(weight)
    for tensor in (*node.outputs, *node.inputs):
        code = scope.elem_type(tensor)
        if code in _LABELS:
            return _LABELS[code]
    return _UNKNOWN


def _type_label(pair: QuantizedEdge) -> str:
    """Return the label of a pair's element type, such as ``FP8``."""
    dtype = read_format(pair).dtype
    element = ELEMENT_TYPES.get(dtype)
    return element.label if element else (dtype or _UNKNOWN).upper()


def _format_name(pair: QuantizedEdge) -> str:
    return read_format(pair).dtype or _UNKNOWN


def _describe_format(pair: QuantizedEdge | None) -> str:
    """Return the element type of a pair and how its scales are spread."""
    if pair is None:
        return ""
    name = _format_name(pair)
    if pair.pair.block_size:
        return f"{name} in blocks of {pair.pair.block_size}"
    axis = read_format(pair).axis
    return name if axis is None else f"{name} along axis {axis}"
