"""The Q/DQ pairs of a quantized model, written by qdq or by another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import msgspec
from onnx import GraphProto, NodeProto, TensorProto

from qdq.graph.bodies import all_graphs, list_names, node_bodies, node_title
from qdq.graph.metadata import LEVELS_KEY, RULE_KEY
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE

PAIR_OPERATORS = (QUANTIZE, DEQUANTIZE)


class QdqPair(msgspec.Struct, frozen=True):
    """A DequantizeLinear and the QuantizeLinear before it, or the stored integers it reads."""

    #: Positions in the graph's node list; no `q` where integers are stored.
    q: int | None
    dq: int
    #: The tensor before the Q, or the stored integer tensor.
    tensor: str
    #: The output of the DequantizeLinear.
    output: str
    #: Names of the scale and zero point that the DQ reads, "" for no zero point.
    scale: str
    zero_point: str
    #: Those of the Q, "" where there is none.
    q_scale: str
    q_zero_point: str
    #: The `axis` attribute of the DQ, None where it is absent.
    axis: int | None
    #: The `block_size` attribute of the DQ, 0 without one scale per block.
    block_size: int
    #: The rules written on the DQ, "" for a pair that qdq did not write.
    rules: str
    #: The smallest and largest integer it holds, None where its type decides them.
    levels: tuple[int, int] | None = None


class HalfNode(NamedTuple):
    """A Q or DQ node, with its operator, inputs and outputs."""

    node: NodeProto
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def find_pairs(graph: GraphProto, around: Collection[str] = ()) -> tuple[QdqPair, ...]:
    """Return the pairs of a graph in node order; bodies are not entered.

    `around` names the constants of the graphs around it.
    """
    producers: dict[str, int] = {}
    halves: dict[int, HalfNode] = {}
    for i, node in enumerate(graph.node):
        producers.update(dict.fromkeys(node.output, i))
        if node.op_type in PAIR_OPERATORS:
            halves[i] = HalfNode(node, node.op_type, tuple(node.input), tuple(node.output))
    return match_halves(halves, producers, {*stored_tensors(graph), *around})


def match_halves(
    halves: Mapping[int, HalfNode], producers: Mapping[str, int], constants: Container[str]
) -> tuple[QdqPair, ...]:
    """Return the pairs that some Q and DQ nodes form, in node order.

    `halves` holds the nodes by position, `producers` the position of the node that computes each
    tensor of the graph, and `constants` the names of the tensors that the graph and those around it
    store.
    """
    pairs: list[QdqPair] = []
    for position, dq in halves.items():
        if dq.operator != DEQUANTIZE or len(dq.inputs) < 2:  # noqa: PLR2004 data and scale
            continue
        producer = producers.get(dq.inputs[0], -1)
        q = halves.get(producer)
        if q is not None and q.operator == QUANTIZE:
            pairs.append(_make_pair(position, dq, producer, q.inputs))
        elif dq.inputs[0] in constants:
            pairs.append(_make_pair(position, dq, None, ()))
    return tuple(pairs)


def stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the tensors that a graph stores by name: initializers and values of Constants."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    stored.update(read_constants(node for node in graph.node if node.op_type == "Constant"))
    return stored


def read_constants(constants: Iterable[NodeProto]) -> dict[str, TensorProto]:
    """Return the tensors that some Constants hold as their value, by name."""
    values: dict[str, TensorProto] = {}
    for node in constants:
        if node.attribute and node.attribute[0].HasField("t"):
            values[node.output[0]] = node.attribute[0].t
    return values


def find_dangling_halves(graph: GraphProto, around: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of Q and DQ nodes that belong to no pair, those in bodies too.

    `around` names the constants of the graphs around it.
    """
    paired: set[int | None] = set()
    for pair in find_pairs(graph, around):
        paired.update((pair.q, pair.dq))
    dangling = []
    for i, node in enumerate(graph.node):
        if node.op_type in PAIR_OPERATORS and i not in paired:
            dangling.append(node_title(node, i))
    constants = {*stored_tensors(graph), *around}
    for node in graph.node:
        for _, body in node_bodies(node):
            dangling.extend(find_dangling_halves(body, constants))
    return tuple(dangling)


def count_readers(graph: GraphProto) -> Counter[str]:
    """Return how often each tensor is read by nodes, bodies and graph outputs."""
    count: Counter[str] = Counter()
    for scope in all_graphs(graph):
        count.update(list_names(scope.output))
        count.update(chain.from_iterable(node.input for node in scope.node))
    return count


def _make_pair(
    dq_position: int, dq: HalfNode, q_position: int | None, q_inputs: tuple[str, ...]
) -> QdqPair:
    """Return a pair; one of stored integers has no Q, whose inputs are () then."""
    metadata = {entry.key: entry.value for entry in dq.node.metadata_props}
    integers = {attribute.name: attribute.i for attribute in dq.node.attribute}
    return QdqPair(
        q=q_position,
        dq=dq_position,
        tensor=dq.inputs[0] if q_position is None else q_inputs[0],
        output=dq.outputs[0],
        scale=dq.inputs[1],
        zero_point=_name_at(dq.inputs, 2),
        q_scale=_name_at(q_inputs, 1),
        q_zero_point=_name_at(q_inputs, 2),
        axis=integers.get("axis"),
        block_size=integers.get("block_size", 0),
        rules=metadata.get(RULE_KEY, ""),
        levels=_parse_levels(metadata[LEVELS_KEY]) if LEVELS_KEY in metadata else None,
    )


def _parse_levels(text: str) -> tuple[int, int] | None:
    try:
        low, high = map(int, text.split())
    except ValueError:
        return None
    return low, high


def _name_at(names: tuple[str, ...], slot: int) -> str:
    """Return the name at a slot, "" where there is none."""
    return names[slot] if len(names) > slot else ""
