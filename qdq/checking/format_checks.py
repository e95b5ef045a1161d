"""Findings about single Q and DQ nodes as they stand in the file: what TensorRT's parser refuses or reads otherwise than ONNX says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.checking.finding import Finding, make_finding
from qdq.graph.bodies import all_nodes, node_bodies, node_labels, qualified_name, read_tensor_values
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.opset import default_opset
from qdq.graph.pairs import PAIR_OPERATORS, QdqPair, find_pairs, stored_tensors
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    DYNAMIC_OPERATORS,
    QUANTIZE,
    is_quantized_operator,
)
from qdq.graph.source import Source

_TYPES = onnx.TensorProto.DataType
_UINT8, _INT8, _INT32 = _TYPES.Value("UINT8"), _TYPES.Value("INT8"), _TYPES.Value("INT32")

#: Types that TensorRT reads, with the opset that has each for Q/DQ (ONNX operator changelog).
_READ = {
    _INT8: 10,
    _UINT8: 10,
    _TYPES.Value("FLOAT8E4M3FN"): 19,
    _TYPES.Value("INT4"): 21,
    _TYPES.Value("FLOAT4E2M1"): 23,
}

#: Of these the ones whose stored values nothing but a DequantizeLinear may read.
_QUANTIZED_CONSTANTS = frozenset(_READ) - {_UINT8}
_AXIS_OPSET = 13

#: From here on a DequantizeLinear gives its scale's type.
_SCALE_TYPE_OPSET = 19
_FLOATS = {_TYPES.Value(name): name for name in ("FLOAT", "FLOAT16", "BFLOAT16")}

#: The axis of several scales where the attribute is absent (ONNX operators QuantizeLinear and DequantizeLinear).
_DEFAULT_AXIS = 1

#: The least float32 that is not denormal.
_NORMAL = float(np.finfo(np.float32).tiny)

#: The edges of the float graph that read what a DQ gives, by the path of its graph and that tensor.
Edges = Mapping[tuple[str, str], tuple[Edge, ...]]


class PairHalf(msgspec.Struct, frozen=True):
    """A Q or DQ as it stands in the file."""

    node: onnx.NodeProto
    #: Its label behind the path of its graph, and that path.
    label: str
    path: str
    scale: str
    zero_point: str
    #: Values of both, None for what is computed or absent.
    scales: Array | None
    zeros: Array | None
    #: ONNX type of the quantized values, 0 where nothing says it.
    dtype: int
    axis: int | None
    #: Dimensions and type of what it reads, None and 0 where they are unknown.
    dims: tuple[int | None, ...] | None
    read_type: int
    #: Whether it quantizes by blocks.
    blocks: bool = False


def check_operators(source: Source) -> Iterator[Finding]:
    """Yield one finding for each quantized operator that TensorRT lacks."""
    for label, node in all_nodes(source.model.graph):
        if is_quantized_operator(node):
            fix = (
                "quantize the float model statically, in Q/DQ: its scales are computed while it runs"
                if node.op_type in DYNAMIC_OPERATORS
                else ""
            )
            yield make_finding(
                "unsupported-operator", label, f"{node.op_type} is no operator of TensorRT", fix=fix
            )


#: How to mend the zero point of integers that come into the model, or leave it: no conversion may change what its inputs and outputs hold.
_OUTSIDE = "feed and read floats, or INT8 with zero point 0: what a model's own inputs and outputs hold is not qdq's to change"


class FormatCheck:
    """The findings about every Q and DQ of a model.

    `edges` tells which edges of the float graph each pair stands on, and `floats` is the index of that graph; empty
    and None where the model could not be read as a float one.
    """

    def __init__(self, source: Source, edges: Edges, floats: GraphIndex | None) -> None:
        self.source, self.edges, self.floats = source, edges, floats
        self.opset = source.given_opset or default_opset(source.model)
        #: What pairs give whose halves have different scales; known once all findings were read.
        self.rescaled: set[str] = set()
        #: Scales of operators that quantize while they run, which are findings of their own.
        self._dynamic = {
            name
            for _, node in all_nodes(source.model.graph)
            if node.op_type in DYNAMIC_OPERATORS
            for name in node.output
        }
        #: Opset that the pairs need, and what needs it.
        self._needs: list[tuple[int, str, Edge | str]] = []

    @cached_property
    def index(self) -> GraphIndex:
        """The index of the model as it is, which only scales that are made of constants, and activations of several scales, need."""
        return GraphIndex(self.source)

    def findings(self) -> Iterator[Finding]:
        """Yield them in the order of the nodes."""
        yield from self._graph(self.source.model.graph, {}, "")
        needed, what, where = max(self._needs, key=lambda need: need[0], default=(0, "", ""))
        if needed > self.opset:
            yield make_finding(
                "opset",
                where,
                f"the model has opset {self.opset}; {what} needs {needed}",
                fix=f"export with opset {needed} or newer",
            )

    def _graph(
        self, graph: onnx.GraphProto, around: dict[str, onnx.TensorProto], path: str
    ) -> Iterator[Finding]:
        stored = around | stored_tensors(graph)
        labels = node_labels(graph)
        types = _Types(stored)
        pairs = find_pairs(graph, around)
        paired = {i for p in pairs for i in (p.q, p.dq) if i is not None}
        for pair in pairs:
            edges = self._edges(path, pair.output)
            halves = [
                self._half(graph.node[i], labels[i], path, types, edges)
                for i in (pair.q, pair.dq)
                if i is not None
            ]
            yield from self._pair(halves, edges, pair)
        for positions in _lone(graph, paired):
            edges = self._edges(path, graph.node[positions[-1]].output[0])
            yield from self._pair(
                [self._half(graph.node[i], labels[i], path, types, edges) for i in positions],
                edges,
                None,
            )
        for label, node in zip(labels, graph.node, strict=True):
            if wrong := _wrong_constant(node, stored):
                yield make_finding("stored-integers", qualified_name(path, label), wrong)
            for name, body in node_bodies(node):
                yield from self._graph(body, stored, qualified_name(path, f"{label}.{name}"))

    def _edges(self, path: str, tensor: str) -> tuple[Edge, ...]:
        return self.edges.get((path, tensor)) or self._reading(path, tensor)

    def _reading(self, path: str, tensor: str) -> tuple[Edge, ...]:
        """Return the edges of the float graph that read a tensor of the same name there."""
        scope = self.floats.scopes.get(path) if self.floats is not None else None
        return scope.edges_from(tensor) if scope is not None else ()

    def _half(
        self, node: onnx.NodeProto, label: str, path: str, types: _Types, edges: tuple[Edge, ...]
    ) -> PairHalf:
        scale, zero = node.input[1], node.input[2] if len(node.input) > 2 else ""  # noqa: PLR2004 the slot of the zero point
        attributes = {a.name: a.i for a in node.attribute}
        read = types.of(node.input[0])
        dtype = (
            types.of(zero)
            if zero
            else attributes.get("output_dtype", 0)
            if node.op_type == QUANTIZE
            else read
        )
        scales = self._values(scale, path, types.stored)
        data = types.stored.get(node.input[0])
        dims: tuple[int | None, ...] | None = tuple(data.dims) if data is not None else None
        if self.floats is not None and edges and node.op_type == QUANTIZE:
            scope = self.floats.scope(edges[0])
            read = read or scope.elem_type(edges[0].tensor)
        if (
            data is None
            and self.floats is not None
            and edges
            and scales is not None
            and scales.size > 1
        ):
            dims = self.floats.scope(edges[0]).shape(edges[0].tensor)
        zeros = self._values(zero, path, types.stored) if zero else None
        blocks = bool(attributes.get("block_size"))
        return PairHalf(
            node,
            qualified_name(path, label),
            path,
            scale,
            zero,
            scales,
            zeros,
            dtype,
            attributes.get("axis"),
            dims,
            read,
            blocks,
        )

    def _values(self, name: str, path: str, stored: Mapping[str, onnx.TensorProto]) -> Array | None:
        scope, values = self.index.scopes.get(path), None
        if name in stored:
            values = read_tensor_values(stored[name], self.source.name, self.source.folder)
        elif scope is not None and scope.is_constant(name):
            values = scope.constant(name)
        return None if values is None or values.dtype.kind in _TEXTS else values

    def _pair(
        self, halves: list[PairHalf], edges: tuple[Edge, ...], pair: QdqPair | None
    ) -> Iterator[Finding]:
        """Yield what is wrong with a pair, each code once, or with a lone node."""
        where: Edge | str = edges[0] if edges else halves[-1].label
        told: set[str] = set()
        for half in halves:
            self._needs += [(needed, what, where) for needed, what in _needed(half)]
            for code, problem in (
                () if half.scale in self._dynamic else _wrong(half, self.opset >= _SCALE_TYPE_OPSET)
            ):
                if code not in told:
                    told.add(code)
                    yield make_finding(
                        code,
                        where,
                        problem,
                        fix=_OUTSIDE if pair is None and code == "zero-point" else "",
                    )
        if pair is not None and not told and (ratio := _ratio(halves)):
            self.rescaled.add(pair.output)
            yield make_finding(
                "unequal-halves",
                where,
                f"its Q has the scale {ratio[0]:.6g}, its DQ {ratio[1]:.6g}",
            )


def _wrong_constant(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> str:
    """Return what is wrong where a node reads stored quantized values that only a DequantizeLinear may read, "" for nothing; the bounds of a Clip may be."""
    if is_quantized_operator(node) or node.op_type == QUANTIZE:
        return ""
    tensor = stored.get(node.input[0]) if node.input else None
    if tensor is None or tensor.data_type not in _QUANTIZED_CONSTANTS:
        return ""
    name, kind = node.input[0], _TYPES.Name(tensor.data_type)
    if node.op_type != DEQUANTIZE:
        return f"this {node.op_type} reads {name!r}, which is stored as {kind}"
    return "" if tensor.dims else f"reads {name!r}, a scalar that is stored as {kind}"


def _lone(graph: onnx.GraphProto, paired: set[int]) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the Q and DQ that are no plain pair: each DQ behind its Q where operators on integers lie between, else alone."""
    alone = {
        i
        for i, node in enumerate(graph.node)
        if node.op_type in PAIR_OPERATORS
        and i not in paired
        and len(node.input) > 1
        and node.output
    }
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    told: set[int] = set()
    for i in sorted(alone):
        if graph.node[i].op_type == DEQUANTIZE:
            at: int | None = i
            while at is not None and (at == i or at not in alone):
                at = makers.get(graph.node[at].input[0]) if graph.node[at].input else None
            before = (
                (at,)
                if at is not None and at not in told and graph.node[at].op_type == QUANTIZE
                else ()
            )
            told.update((*before, i))
            yield (*before, i)
    yield from ((i,) for i in sorted(alone - told))


#: Kinds of numpy's types that hold no numbers.
_TEXTS = "OSU"


class _Types:
    """The types of the tensors that a graph stores."""

    def __init__(self, stored: dict[str, onnx.TensorProto]) -> None:
        self.stored = stored

    def of(self, name: str) -> int:
        return self.stored[name].data_type if name in self.stored else 0


def _wrong(half: PairHalf, typed_by_scale: bool) -> Iterator[tuple[str, str]]:
    """Yield the code and the sentence of each thing that is wrong with a Q or DQ."""
    if half.node.op_type == DEQUANTIZE and _INT32 in (half.dtype, half.read_type):
        yield "int32-dequantize", "dequantizes INT32, as of a quantized bias"
        return
    for check in (_wrong_scale, _wrong_count, _wrong_type):
        yield from check(half)
    if typed_by_scale and (wrong := _wrong_scale_type(half)):
        yield "scale-type", wrong


def _wrong_scale(half: PairHalf) -> Iterator[tuple[str, str]]:
    if half.scales is None:
        yield "scale-not-constant", f"its scale {half.scale!r} is computed"
    elif not (half.scales > 0).all() or not np.isfinite(half.scales.astype(np.float64)).all():
        yield "scale-not-positive", f"its scale {half.scale!r} is {_worst(half.scales)}"
    elif half.scales.size and float(half.scales.min()) < _NORMAL:
        yield "tiny-scale", f"its scale {half.scale!r} is {float(half.scales.min()):.3g}"


def _worst(scales: Array) -> str:
    values = scales.astype(np.float64).reshape(-1)
    worst = next((v for v in values if not np.isfinite(v)), values.min())
    return f"{worst:.6g}" + (
        f", the least of {values.size}" if values.size > 1 and np.isfinite(worst) else ""
    )


def _wrong_count(half: PairHalf) -> Iterator[tuple[str, str]]:
    if half.scales is None or half.blocks:
        return
    if half.zeros is not None and half.zeros.size != half.scales.size:
        yield "scale-count", f"has {half.scales.size} scales and {half.zeros.size} zero points"
        return
    if half.scales.ndim != 1 or half.scales.size == 1:
        return
    axis = _DEFAULT_AXIS if half.axis is None else half.axis
    size = _size_along(half.dims, axis)
    if isinstance(size, int) and size != half.scales.size:
        yield (
            "scale-count",
            f"has {half.scales.size} scales for axis {axis} of {size}"
            + ("; no axis attribute means 1" if half.axis is None else ""),
        )
    elif half.axis is None:
        yield "default-axis", f"has {half.scales.size} scales and no axis attribute"


def _size_along(dims: tuple[int | None, ...] | None, axis: int) -> int | None:
    """Return the size of an axis, 0 for one that there is not, None where it is unknown."""
    if dims is None:
        return None
    return dims[axis] if -len(dims) <= axis < len(dims) else 0


def _wrong_type(half: PairHalf) -> Iterator[tuple[str, str]]:
    quantizes, stored = (
        half.node.op_type == QUANTIZE,
        half.node.op_type == DEQUANTIZE and half.read_type,
    )
    if half.dtype and half.dtype not in _READ:
        yield (
            "unsupported-type",
            f"is {'stored as' if stored else 'quantized to'} {_TYPES.Name(half.dtype)}",
        )
    elif half.zeros is not None and np.any(half.zeros.astype(np.float32)):
        yield (
            "zero-point",
            f"its zero point is {half.zeros.reshape(-1)[np.flatnonzero(half.zeros.astype(np.float32))[0]]}",
        )
    elif quantizes and not half.dtype and not half.zero_point:
        yield "no-zero-point", "has no zero point: ONNX reads that as UINT8, TensorRT as INT8"
    elif stored and half.dtype == _UINT8:
        yield "unsupported-type", "is stored as UINT8"
    elif half.dtype == _UINT8:
        yield "uint8", "is quantized to UINT8 with zero point 0; TensorRT reads INT8"


def _wrong_scale_type(half: PairHalf) -> str:
    """Return what is wrong where a Q has a scale of another float type than what it reads."""
    if half.node.op_type != QUANTIZE or half.scales is None or half.read_type not in _FLOATS:
        return ""
    given = onnx.helper.np_dtype_to_tensor_dtype(half.scales.dtype)
    return (
        f"its scale is {_FLOATS[given]}, the tensor {_FLOATS[half.read_type]}"
        if given in _FLOATS and given != half.read_type
        else ""
    )


def _needed(half: PairHalf) -> Iterator[tuple[int, str]]:
    """Yield the opsets that a Q or DQ needs, with what needs each."""
    if half.axis is not None or (half.scales is not None and half.scales.size > 1):
        yield _AXIS_OPSET, "an axis of scales"
    if _READ.get(half.dtype, 0) > _AXIS_OPSET:
        yield _READ[half.dtype], _TYPES.Name(half.dtype)


def _ratio(halves: list[PairHalf]) -> tuple[float, float] | None:
    """Return the scales of a Q and a DQ that are not the same, the first that differ."""
    if len(halves) < 2 or halves[0].scale == halves[1].scale:  # noqa: PLR2004 both halves
        return None
    ours, theirs = (half.scales for half in halves)
    if (
        ours is None
        or theirs is None
        or ours.size != theirs.size
        or np.allclose(ours.reshape(-1), theirs.reshape(-1), rtol=1e-3, atol=0.0)
    ):
        return None
    at = int(np.argmax(~np.isclose(ours.reshape(-1), theirs.reshape(-1), rtol=1e-3, atol=0.0)))
    return float(ours.reshape(-1)[at]), float(theirs.reshape(-1)[at])
