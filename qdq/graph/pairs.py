"""The Q/DQ pairs that a quantized model holds, ours or anyone's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import msgspec
import onnx

from qdq.graph.bodies import node_bodies
from qdq.graph.metadata import LEVELS_KEY, RULE_KEY
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE

PAIR_OPERATORS = (QUANTIZE, DEQUANTIZE)


class QdqPair(msgspec.Struct, frozen=True):
    """A DequantizeLinear and the QuantizeLinear before it, or the stored integers it reads."""

    #: Positions in the graph's node list; no `q` where integers are stored.
    q: int | None
    dq: int
    #: What was quantized: the tensor before the Q, or the stored integer tensor.
    tensor: str
    #: What the DequantizeLinear gives.
    output: str
    #: Names of the scale and zero point that the DQ reads, "" for no zero point.
    scale: str
    zero_point: str
    #: Those of the Q, where there is one.
    q_scale: str
    q_zero_point: str
    #: The `axis` attribute of the DQ, None where it is absent.
    axis: int | None
    #: The `block_size` attribute of the DQ, 0 where scales do not go by blocks.
    block_size: int
    #: The rules written on the DQ, "" for a pair that qdq did not write.
    rules: str
    #: The least and largest integer it holds, where that is not what its type says.
    levels: tuple[int, int] | None = None


def find_pairs(graph: onnx.GraphProto, around: Collection[str] = ()) -> tuple[QdqPair, ...]:
    """Return the pairs of a graph in node order; bodies are not entered. `around` names the constants of the graphs around it."""
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    stored = {*stored_tensors(graph), *around}
    found = []
    for i, node in enumerate(graph.node):
        if node.op_type != DEQUANTIZE or len(node.input) < 2:  # noqa: PLR2004 data and scale
            continue
        before = producers.get(node.input[0])
        if before is not None and graph.node[before].op_type == QUANTIZE:
            found.append(_pair(node, i, graph.node[before], before))
        elif node.input[0] in stored:
            found.append(_pair(node, i, None, None))
    return tuple(found)


def stored_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the tensors that a graph stores by name: its initializers and the values of its Constants."""
    stored = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            stored[node.output[0]] = node.attribute[0].t
    return stored


def find_dangling_halves(graph: onnx.GraphProto, around: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of Q and DQ nodes that belong to no pair, those in bodies too."""
    paired = {i for p in find_pairs(graph, around) for i in (p.q, p.dq)}
    alone = [
        n.name or f"#{i}"
        for i, n in enumerate(graph.node)
        if n.op_type in PAIR_OPERATORS and i not in paired
    ]
    known = {*stored_tensors(graph), *around}
    return (
        *alone,
        *(
            name
            for node in graph.node
            for _, body in node_bodies(node)
            for name in find_dangling_halves(body, known)
        ),
    )


def count_readers(graph: onnx.GraphProto) -> Counter[str]:
    """Return how often each tensor is read by nodes, bodies and graph outputs."""
    count = Counter(o.name for o in graph.output)
    _count_reads(graph, count)
    return count


def _count_reads(graph: onnx.GraphProto, count: Counter[str]) -> None:
    for node in graph.node:
        count.update(node.input)
        for _, body in node_bodies(node):
            count.update(o.name for o in body.output)
            _count_reads(body, count)


def _pair(
    dq: onnx.NodeProto, dq_position: int, q: onnx.NodeProto | None, q_position: int | None
) -> QdqPair:
    written = {p.key: p.value for p in dq.metadata_props}
    return QdqPair(
        q=q_position,
        dq=dq_position,
        tensor=q.input[0] if q else dq.input[0],
        output=dq.output[0],
        scale=dq.input[1],
        zero_point=_input(dq, 2),
        q_scale=_input(q, 1) if q else "",
        q_zero_point=_input(q, 2) if q else "",
        axis=next((a.i for a in dq.attribute if a.name == "axis"), None),
        block_size=next((a.i for a in dq.attribute if a.name == "block_size"), 0),
        rules=written.get(RULE_KEY, ""),
        levels=_levels(written.get(LEVELS_KEY, "")),
    )


def _levels(text: str) -> tuple[int, int] | None:
    try:
        low, high = map(int, text.split())
    except ValueError:
        return None
    return low, high


def _input(node: onnx.NodeProto, slot: int) -> str:
    return node.input[slot] if len(node.input) > slot else ""
