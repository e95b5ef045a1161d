"""Residual sums: which input a convolution is fused with, and which ones skip it.

TensorRT fuses a convolution with the Add after it; the type of the Add's other operand then
decides whether the fused kernel can be INT8 from end to end (TensorRT documentation, explicit
quantization, Q/DQ placement recommendations). The other operand is the residual branch, or skip.

A sum of more tensors, as a Sum or as Adds after each other, has several skips. Engines of
TensorRT-RTX 1.7.1 read each of them in INT8: a network of three blocks with two skips each moves
4.12 MB with pairs on none of them, 3.70 MB with pairs on either and 3.47 MB on both. The C of a
Gemm is a skip too: the compiler adds it to the product.

Casts between float types are looked through, so that a model has the same residual sums after
`qdq cast` as before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import msgspec

from qdq.graph.aliases import find_tensor_before_casts, is_float_cast
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Node
from qdq.graph.operators import (
    ACTIVATIONS_BEFORE_RESIDUAL,
    CONVOLUTIONS,
    FOLDED_INTO_WEIGHTS,
    MOVES_BEFORE_RESIDUAL,
    SUMS,
)
from qdq.graph.patterns import find_self_gated

_GEMM_ADDEND = 2
_SILU_READERS = 2


class Residual(msgspec.Struct, frozen=True):
    """A sum of the result of a convolution, or of another backbone, with the tensors that skip it.

    A backbone that the sum reads through further Adds is fused with the first of them.
    """

    backbone: Node
    #: The slots of the sum that read the other tensors.
    skips: tuple[int, ...]


def find_residual(
    index: CompilerView, node: Node, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Residual | None:
    """Return the backbone and the skips of a residual sum, None for other nodes.

    `backbones` are convolutions or other operators. Of several terms that come from one, the one
    with the longer path to their lowest common ancestor is fused and the others are skips. At
    equal length the later one is fused.
    """
    if node.op == "Gemm" and node.op in backbones:
        return _find_gemm_residual(index, node)
    terms = _list_terms(index, node)
    if len(terms) <= 1:
        return None
    backbone_of: dict[int, Node] = {}
    for find in (find_backbone, _find_backbone_of_sum):
        for slot in terms:
            backbone = find(index, node.inputs[slot], backbones)
            if backbone is not None:
                backbone_of[slot] = backbone
        if backbone_of:
            break
    if not backbone_of:
        return None
    fused_slot = _select_fused_slot(index, node, backbone_of)
    skips = tuple(slot for slot in terms if slot != fused_slot)
    return Residual(backbone_of[fused_slot], skips)


def is_skip(
    index: CompilerView, node: Node, slot: int, backbones: tuple[str, ...] = CONVOLUTIONS
) -> bool:
    """Whether a slot of a node reads a skip of a residual sum."""
    residual = find_residual(index, node, backbones)
    return residual is not None and slot in residual.skips


def find_backbone(
    index: CompilerView, tensor: str, backbones: tuple[str, ...] = CONVOLUTIONS
) -> Node | None:
    """Return the convolution that a tensor comes from, None where there is none.

    Only folded operators and activations may be between them, without other readers. `backbones`
    names other operators to search for, such as MATRIX_PRODUCTS in transformers and ConvNeXt;
    after a matrix product there may be moves too, but no activations.
    """
    between: tuple[str, ...] = (*FOLDED_INTO_WEIGHTS, *ACTIVATIONS_BEFORE_RESIDUAL)
    if backbones != CONVOLUTIONS:
        between = (*FOLDED_INTO_WEIGHTS, *MOVES_BEFORE_RESIDUAL)
    node = index.producers.get(tensor)
    while node is not None and _is_read_once(index, tensor):
        if node.op in backbones:
            return node
        computed = [name for name in node.inputs if name and not index.is_constant(name)]
        if is_float_cast(index, node) or (node.op in between and len(computed) == 1):
            tensor = computed[0]
        else:
            if backbones != CONVOLUTIONS:
                return None
            self_gated = find_self_gated(index, node)
            if not self_gated:
                return None
            tensor = self_gated
        node = index.producers.get(tensor)
    return None


def _find_gemm_residual(index: CompilerView, gemm: Node) -> Residual | None:
    """Return the residual of a Gemm whose C is computed and has the shape of the product."""
    if len(gemm.inputs) <= _GEMM_ADDEND or not _is_term(index, gemm, _GEMM_ADDEND):
        return None
    return Residual(gemm, (_GEMM_ADDEND,))


def _list_terms(index: CompilerView, node: Node) -> list[int]:
    """Return the slots of a sum that read different computed tensors of the result's shape.

    The list is empty for other nodes.
    """
    if node.op not in SUMS:
        return []
    slots: dict[str, int] = {}
    for slot, tensor in enumerate(node.inputs):
        if _is_term(index, node, slot):
            slots.setdefault(tensor, slot)
    return list(slots.values())


def _is_term(index: CompilerView, node: Node, slot: int) -> bool:
    """Whether a slot reads a computed tensor of the result's shape, as far as that is known."""
    tensor = node.inputs[slot]
    if not tensor or index.is_constant(tensor):
        return False
    shape = index.shape(tensor)
    result_shape = index.shape(node.outputs[0])
    if shape is None or result_shape is None:
        return True
    if len(shape) != len(result_shape):
        return False
    sizes = zip(shape, result_shape, strict=True)
    return not any(_is_broadcast(*pair) for pair in sizes)


def _find_backbone_of_sum(
    index: CompilerView, tensor: str, backbones: tuple[str, ...]
) -> Node | None:
    """Return the backbone of one of the terms of a sum, or of the sums in it, None without one."""
    pending = deque([tensor])
    while pending:
        tensor = pending.popleft()
        node = index.producers.get(tensor)
        if node is None or not _is_read_once(index, tensor):
            continue
        if is_float_cast(index, node):
            pending.append(node.inputs[0])
            continue
        terms = [node.inputs[slot] for slot in _list_terms(index, node)]
        for term in terms:
            backbone = find_backbone(index, term, backbones)
            if backbone is not None:
                return backbone
        pending.extend(terms)
    return None


def _select_fused_slot(index: CompilerView, node: Node, slots: Iterable[int]) -> int:
    """Return the slot whose term is fused with its backbone."""
    first, *others = slots
    fused = first
    for slot in others:
        tensors = (node.inputs[fused], node.inputs[slot])
        distances = _distances_to_common_ancestor(index, *tensors)
        if distances is None or distances[0] <= distances[1]:
            fused = slot
    return fused


def _is_read_once(index: CompilerView, tensor: str) -> bool:
    """Whether one node reads a tensor, or the two nodes of one SiLU."""
    if index.sole_consumer(tensor):
        return True
    readers = [node for node, _ in index.live_readers(tensor)]
    if len(readers) != _SILU_READERS or tensor in index.outputs:
        return False
    return any(find_self_gated(index, node) == tensor for node in readers)


def _is_broadcast(size: int | None, other_size: int | None) -> bool:
    return None not in (size, other_size) and size != other_size


def _distances_to_common_ancestor(
    index: CompilerView, first: str, second: str
) -> tuple[int, int] | None:
    """Return the number of nodes from each tensor back to their nearest common ancestor."""
    searches = (_AncestorSearch(index, first), _AncestorSearch(index, second))
    while searches[0].queue or searches[1].queue:
        for search, other in (searches, searches[::-1]):
            if not search.queue:
                continue
            tensor = search.queue.popleft()
            if tensor in other.distances:
                return searches[0].distances[tensor], searches[1].distances[tensor]
            search.visit(tensor)
    return None


class _AncestorSearch:
    """A breadth-first search from a tensor to those it is computed from; Casts do not count."""

    def __init__(self, index: CompilerView, tensor: str) -> None:
        tensor = find_tensor_before_casts(index, tensor)
        self.distances = {tensor: 0}
        self.queue = deque([tensor])
        self._index = index

    def visit(self, tensor: str) -> None:
        """Add the computed inputs of a tensor's producer to the queue."""
        producer = self._index.producers.get(tensor)
        if producer is None:
            return
        for read_name in producer.inputs:
            name = find_tensor_before_casts(self._index, read_name)
            if name and name not in self.distances and not self._index.is_constant(name):
                self.distances[name] = self.distances[tensor] + 1
                self.queue.append(name)
