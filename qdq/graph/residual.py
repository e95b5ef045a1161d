"""Residual Adds: which input a convolution is fused with, and which one skips it.

TensorRT fuses a convolution with the Add behind it; the type of the Add's other operand then
decides whether the fused kernel can be INT8 from end to end (TensorRT documentation, explicit
quantization, Q/DQ placement recommendations). The other operand is the residual branch.
"""

from __future__ import annotations

from collections import deque

from qdq.graph.index import Edge, GraphIndex, Node
from qdq.graph.operators import (
    ACTIVATIONS_BEFORE_RESIDUAL,
    CONVOLUTIONS,
    FOLDED_BEFORE_RESIDUAL,
    MOVES_BEFORE_RESIDUAL,
)
from qdq.graph.patterns import find_self_gated

_TERMS = 2


def find_residual_slot(
    index: GraphIndex, add: Node, backbones: tuple[str, ...] = CONVOLUTIONS
) -> int | None:
    """Return the slot of an Add's residual branch, or None where the Add joins no convolution, or other backbone, with a skip.

    With a convolution on one side, the other side is the residual. With one on both, the branch
    with the longer way to their lowest common ancestor is fused and the shorter one is the
    residual; at equal length the second input is fused.
    """
    if not _joins_two_branches(index, add):
        return None
    found = [find_backbone(index, tensor, backbones) for tensor in add.inputs]
    if found[0] is None and found[1] is None:
        return None
    if found[0] is None or found[1] is None:
        return 0 if found[0] is None else 1
    near = _distances_to_common_ancestor(index, add.inputs[0], add.inputs[1])
    return 1 if near is not None and near[0] > near[1] else 0


def find_backbone(
    index: GraphIndex, tensor: str, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Node | None:
    """Return the convolution that a tensor comes from through nothing but folded operators and activations, if no one else reads on the way.

    `backbones` names other operators to look for, as MATRIX_PRODUCTS of transformers and ConvNeXt; behind
    a matrix product, moves may follow too.
    """
    passed = (
        (*FOLDED_BEFORE_RESIDUAL, *ACTIVATIONS_BEFORE_RESIDUAL)
        if backbones == CONVOLUTIONS
        else (*FOLDED_BEFORE_RESIDUAL, *MOVES_BEFORE_RESIDUAL)
    )
    while (node := index.producers.get(tensor)) is not None and _read_once(index, tensor):
        if node.op in backbones:
            return node
        computed = [i for i in node.inputs if i and not index.is_constant(i)]
        if node.op in passed and len(computed) == 1:
            tensor = computed[0]
        elif backbones == CONVOLUTIONS and (gated_by_itself := find_self_gated(index, node)):
            tensor = gated_by_itself
        else:
            return None
    return None


def _read_once(index: GraphIndex, tensor: str) -> bool:
    """Whether one node reads a tensor, or the two nodes of one SiLU."""
    if index.sole_consumer(tensor):
        return True
    readers = [node for node, _ in index.consumers.get(tensor, ())]
    return (
        len(readers) == _TERMS
        and tensor not in index.outputs
        and any(find_self_gated(index, node) == tensor for node in readers)
    )


def find_fused_backbone(
    index: GraphIndex, edge: Edge, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Node | None:
    """Return the convolution, or other backbone, that an Add's other operand comes from, for an edge into an Add."""
    add = index.node(edge)
    return (
        find_backbone(index, add.inputs[1 - edge.slot], backbones)
        if len(add.inputs) == _TERMS and edge.slot < _TERMS
        else None
    )


def _joins_two_branches(index: GraphIndex, add: Node) -> bool:
    if (
        add.op != "Add"
        or len(set(add.inputs)) != _TERMS
        or any(index.is_constant(i) for i in add.inputs)
    ):
        return False
    shapes = [index.shape(i) for i in add.inputs]
    same_rank = shapes[0] is None or shapes[1] is None or len(shapes[0]) == len(shapes[1])
    return same_rank and not any(
        _broadcasts(a, b) for a, b in zip(shapes[0] or (), shapes[1] or (), strict=False)
    )


def _broadcasts(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _distances_to_common_ancestor(
    index: GraphIndex, left: str, right: str
) -> tuple[int, int] | None:
    """Return how many nodes lie between each tensor and the nearest tensor that both come from."""
    seen: tuple[dict[str, int], dict[str, int]] = ({left: 0}, {right: 0})
    queues = (deque([left]), deque([right]))
    while queues[0] or queues[1]:
        for side in (0, 1):
            if not queues[side]:
                continue
            tensor = queues[side].popleft()
            if tensor in seen[1 - side]:
                return seen[0][tensor], seen[1][tensor]
            _visit(index, tensor, seen[side], queues[side])
    return None


def _visit(index: GraphIndex, tensor: str, seen: dict[str, int], queue: deque[str]) -> None:
    node = index.producers.get(tensor)
    for before in node.inputs if node else ():
        if before and before not in seen and not index.is_constant(before):
            seen[before] = seen[tensor] + 1
            queue.append(before)
