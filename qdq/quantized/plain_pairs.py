"""Whether all quantization of a model is in plain pairs, so that nothing has to be converted.

What this module is not sure of is converted; a conversion that finds nothing to do returns the
model as it is.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import (
    DEQUANTIZE,
    MICROSOFT,
    QUANTIZE,
    is_quantized_operator_id,
)
from qdq.quantizer import integer_levels

#: The operators whose results a pair may read: computed constants are stored by a conversion.
_READ_PLAINLY = (*PAIR_OPERATORS, "Constant")

_OPERANDS = 2


def holds_plain_pairs_alone(graph: QdqGraph) -> bool:
    """Whether a graph and its bodies hold no other quantization than pairs without peculiarities.

    In such a pair both halves have the same stored scale, nothing but a DQ reads the integers, and
    the range does not begin at zero, as it does where an activation was folded into the Q.
    """
    for domain, operator in graph.all_operators:
        if is_quantized_operator_id(domain, operator):
            return False
        if domain == MICROSOFT and operator in PAIR_OPERATORS:
            return False
    return all(_has_plain_pairs(part) for part in graph.graphs)


def _has_plain_pairs(graph: QdqGraph) -> bool:
    """Whether all Q and DQ nodes of one graph form plain pairs."""
    for position in graph.half_positions:
        if not _reads_plainly(graph, position):
            return False
        if graph.operators[position] == QUANTIZE and not _is_plain_quantize(graph, position):
            return False
    return _reads_integers_by_dequantize(graph)


def _reads_plainly(graph: QdqGraph, position: int) -> bool:
    """Whether a half has its scale, and reads only stored tensors, or as a Q a computed one."""
    inputs = graph.inputs[position]
    if len(inputs) < _OPERANDS or not graph.outputs[position]:
        return False
    names = inputs if graph.operators[position] == DEQUANTIZE else inputs[1:]
    for name in names:
        producer = graph.producers.get(name)
        if producer is not None and graph.operators[producer] not in _READ_PLAINLY:
            return False
    return True


def _reads_integers_by_dequantize(graph: QdqGraph) -> bool:
    """Whether only DQ nodes read integers, each with the scale of the Q before it."""
    reads: Counter[str] = Counter()
    for position in graph.half_positions:
        if graph.operators[position] == QUANTIZE:
            reads[graph.outputs[position][0]] += 0
            continue
        name, scale = graph.inputs[position][:_OPERANDS]
        reads[name] += 1
        producer = graph.producers.get(name)
        if producer is None and name not in graph.stored:
            return False
        if producer is not None and not _has_same_scale(graph, producer, scale):
            return False
    return all(graph.readers[name] == count for name, count in reads.items())


def _has_same_scale(graph: QdqGraph, producer: int, scale: str) -> bool:
    """Whether the node before a DQ is no Q, or one with the DQ's scale or another of its value."""
    if graph.operators[producer] != QUANTIZE or graph.inputs[producer][1] == scale:
        return True
    q_values, values = graph.read_parameter(graph.inputs[producer][1]), graph.read_parameter(scale)
    return q_values is not None and values is not None and np.array_equal(q_values, values)


def _is_plain_quantize(graph: QdqGraph, position: int) -> bool:
    """Whether a Q has a zero point, whose first number is not the least integer of its type."""
    inputs = graph.inputs[position]
    if len(inputs) <= _OPERANDS or not inputs[_OPERANDS]:
        return False
    zero_point = graph.stored.get(inputs[_OPERANDS])
    levels = None if zero_point is None else integer_levels(zero_point.data_type)
    if levels is None:
        return True
    values = graph.read_parameter(inputs[_OPERANDS])
    return values is not None and values.size > 0 and bool(values.item(0) != levels[0])
