"""Pools between two pairs, which run in INT8 unless Casts are between them and the pairs.

Built with TensorRT-RTX 1.7.1 for sm120, a GlobalAveragePool between pairs with scales in float32 is
one INT8 kernel in float32, and a part of a float kernel in float16 between Casts.
"""

from __future__ import annotations

from collections.abc import Iterator

from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import MOVES_VALUES, QUANTIZABLE_POOLS
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.quantized.model import label_by_float_graph


def find_paired_pools(index: GraphIndex, float_index: GraphIndex) -> frozenset[str]:
    """Return the labels of the pools between pairs, and of the moves between them and the pairs.

    `index` is that of the main graph with its pairs, and the labels are those in the float graph
    of `float_index`.
    """
    labels = label_by_float_graph(QdqGraph(index.graph), float_index)
    paired: set[str] = set()
    for node in index.nodes:
        if node.op not in QUANTIZABLE_POOLS:
            continue
        producer = index.producers.get(node.inputs[0])
        if producer is None or producer.op != DEQUANTIZE:
            continue
        paired.update(labels[between.position] for between in _list_until_pairs(index, node))
    return frozenset(paired)


def _list_until_pairs(index: GraphIndex, pool: Node) -> tuple[Node, ...]:
    """Return a pool and the moves after it up to pairs; none where other nodes read a result."""
    passed = [pool]
    for node in passed:
        for reader, slot in _list_readers(index, node):
            if reader.op == QUANTIZE:
                continue
            if slot != 0 or reader.op not in MOVES_VALUES:
                return ()
            if reader not in passed:
                passed.append(reader)
        if node.outputs[0] in index.outputs or not index.live_readers(node.outputs[0]):
            return ()
    return tuple(passed)


def _list_readers(index: GraphIndex, node: Node) -> Iterator[tuple[Node, int]]:
    """Yield the nodes that read the values of a result; a Shape reads only its shape."""
    for reader, slot in index.live_readers(node.outputs[0]):
        if reader.op != "Shape":
            yield reader, slot
