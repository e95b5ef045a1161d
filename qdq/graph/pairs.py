"""The Q/DQ pairs of a quantized model, written by qdq or by another tool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

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


def find_pairs(graph: GraphProto, around: Collection[str] = ()) -> tuple[QdqPair, ...]:
    """Return the pairs of a graph in node order; bodies are not entered.

    `around` names the constants of the graphs around it.
    """
    producers: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        producers.update((name, i) for name in node.output)
    stored = {*stored_tensors(graph), *around}
    pairs = []
    for i, node in enumerate(graph.node):
        if node.op_type != DEQUANTIZE or len(node.input) < 2:  # noqa: PLR2004 data and scale
            continue
        tensor = node.input[0]
        producer = producers.get(tensor)
        if producer is not None and graph.node[producer].op_type == QUANTIZE:
            pairs.append(_make_pair(node, i, graph.node[producer], producer))
        elif tensor in stored:
            pairs.append(_make_pair(node, i, None, None))
    return tuple(pairs)


def stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the tensors that a graph stores by name: initializers and values of Constants."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant" or not node.attribute:
            continue
        value = node.attribute[0]
        if value.HasField("t"):
            stored[node.output[0]] = value.t
    return stored


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
        for node in scope.node:
            count.update(node.input)
    return count


def _make_pair(
    dq: NodeProto, dq_position: int, q: NodeProto | None, q_position: int | None
) -> QdqPair:
    metadata = {entry.key: entry.value for entry in dq.metadata_props}
    integers = {attribute.name: attribute.i for attribute in dq.attribute}
    first = dq if q is None else q
    return QdqPair(
        q=q_position,
        dq=dq_position,
        tensor=first.input[0],
        output=dq.output[0],
        scale=dq.input[1],
        zero_point=_input_name(dq, 2),
        q_scale=_input_name(q, 1),
        q_zero_point=_input_name(q, 2),
        axis=integers.get("axis"),
        block_size=integers.get("block_size", 0),
        rules=metadata.get(RULE_KEY, ""),
        levels=_parse_levels(metadata.get(LEVELS_KEY, "")),
    )


def _parse_levels(text: str) -> tuple[int, int] | None:
    try:
        low, high = map(int, text.split())
    except ValueError:
        return None
    return low, high


def _input_name(node: NodeProto | None, slot: int) -> str:
    """Return the tensor at an input slot, "" where the node or the input is absent."""
    if node is None or len(node.input) <= slot:
        return ""
    return str(node.input[slot])
