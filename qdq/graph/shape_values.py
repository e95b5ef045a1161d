"""Float tensors that hold no activations: shapes, counters and phases.

A shape that is scaled, a counter and the argument of a sine need the exact value, which 16 bits
hold up to 2048 only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Node
from qdq.graph.operators import ARITHMETIC, MOVES_VALUES
from qdq.graph.patterns import cached_per_graph

#: Operators that compute shapes, counters and positions from others.
_COMPUTES_SHAPES = (
    *MOVES_VALUES,
    *ARITHMETIC,
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Expand",
    "Floor",
    "Gather",
    "Mod",
    "Neg",
    "Reciprocal",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "Round",
    "Slice",
    "Split",
    "Sqrt",
    "Tile",
    "Where",
)

#: Operators that compute the argument of a sine from positions: the angles of rotary embeddings.
_COMPUTES_PHASES = (*_COMPUTES_SHAPES, "Einsum", "Gemm", "MatMul", "Range", "ConstantOfShape")

#: Operators whose result depends on the shape of their input alone.
_READS_SHAPE = ("Shape", "Size")

#: The inputs that are shapes, indices or sizes, by operator.
_SHAPE_SLOTS = {
    "CenterCropPad": (1,),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Gather": (1,),
    "OneHot": (0, 1),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Upsample": (1,),
}

#: The inputs of a Loop before its state: the number of turns and the condition.
_LOOP_CONTROLS = 2

#: The outputs of a Loop's body before its state: the condition.
_BODY_CONTROLS = 1


def shape_slots(node: Node) -> tuple[int, ...]:
    """Return the input slots of a node that hold shapes, indices or sizes."""
    return _SHAPE_SLOTS.get(node.op, ())


@cached_per_graph
def shape_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of the nodes that compute shapes in floats.

    They compute what only depends on shapes and constants, or what becomes a shape, an index or a
    size. A tensor of two and more dimensions is no shape.
    """
    return frozenset((*_nodes_from_shapes(index), *_nodes_into_shapes(index)))


def _nodes_from_shapes(index: CompilerView) -> Iterator[str]:
    derived: set[str] = set()
    for node in index.nodes:
        if node.op in _READS_SHAPE:
            derived.update(node.outputs)
            continue
        read = [name for name in node.inputs if name and not index.is_constant(name)]
        if read and derived.issuperset(read) and not node.bodies:
            derived.update(node.outputs)
            if _is_short(index, node.outputs[0]):
                yield node.label


def _nodes_into_shapes(index: CompilerView) -> Iterator[str]:
    pending: list[str] = []
    for node in index.nodes:
        slots = [slot for slot in shape_slots(node) if slot < len(node.inputs)]
        pending.extend(node.inputs[slot] for slot in slots)
    for node in _trace_back(index, pending, _COMPUTES_SHAPES):
        if _is_short(index, node.outputs[0]):
            yield node.label


def _is_short(index: CompilerView, tensor: str) -> bool:
    rank = index.rank(tensor)
    return rank is None or rank <= 1


def _trace_back(
    index: CompilerView, tensors: Iterable[str], operators: tuple[str, ...]
) -> Iterator[Node]:
    """Yield the nodes of some operators on the paths to some tensors."""
    pending = list(tensors)
    visited: set[str] = set()
    while pending:
        producer = index.producers.get(pending.pop())
        if producer is None or producer.label in visited or producer.op not in operators:
            continue
        visited.add(producer.label)
        pending.extend(producer.inputs)
        yield producer


@cached_per_graph
def phase_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of Sin and Cos, and of the nodes that compute their angles."""
    waves = [node for node in index.nodes if node.op in ("Sin", "Cos")]
    angles = [node.inputs[0] for node in waves]
    labels = {node.label for node in waves}
    labels.update(node.label for node in _trace_back(index, angles, _COMPUTES_PHASES))
    return frozenset(labels)


@cached_per_graph
def counter_nodes(index: CompilerView) -> frozenset[str]:
    """Return the labels of the nodes of a Loop's body that compute a state of one value."""
    owner = index.owner
    if owner is None or owner.op != "Loop":
        return frozenset()
    names = list(index.outputs)
    states = len(owner.inputs) - _LOOP_CONTROLS
    counters = [
        name for name in names[_BODY_CONTROLS : _BODY_CONTROLS + states] if _is_one(index, name)
    ]
    nodes = _trace_back(index, counters, _COMPUTES_SHAPES)
    return frozenset(node.label for node in nodes if _is_one(index, node.outputs[0]))


def _is_one(index: CompilerView, tensor: str) -> bool:
    shape = index.shape(tensor)
    return shape is not None and all(size == 1 for size in shape)
