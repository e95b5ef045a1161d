"""The facts about weights whose values share scales in blocks."""

from __future__ import annotations

from qdq.graph.index import Edge
from qdq.graph.operands import has_whole_blocks, is_operand
from qdq.rules.fact_registry import Scene, edge_fact
from qdq.rules.kernel_tables import explain_missing_block_kernel

#: The name of the fact about whole blocks.
UNBLOCKED_WEIGHT = "unblocked-weight"

#: The name of the fact that reads the INT4 rows of kernel tables.
LACKS_INT4_KERNEL = "lacks-int4-kernel"


@edge_fact
def unblocked_weight(scene: Scene, edge: Edge, *, block_size: float) -> bool:
    """A constant operand of a Gemm or MatMul without two whole blocks of `block-size` to sum over.

    It is no matrix, the first factor, or its summed axis is no multiple of the size, or one block.
    """
    index = scene.index
    is_weight = index.is_constant(edge.tensor) and is_operand(index, edge)
    return is_weight and not has_whole_blocks(index, edge, block_size)


@edge_fact
def lacks_int4_kernel(scene: Scene, edge: Edge, *, block_size: float) -> bool:
    """A weight that would not stay in INT4 in blocks of `block-size` on one of the plan's targets.

    The targets' kernel tables decide. Targets whose tables have no rows for INT4 are left out.
    """
    index = scene.index
    if not (index.is_constant(edge.tensor) and is_operand(index, edge)):
        return False
    size = int(block_size)
    for target in scene.targets:
        if explain_missing_block_kernel(index, edge, target, size, scene.float_type):
            return True
    return False


#: All of them, by name.
BLOCK_FACTS = (UNBLOCKED_WEIGHT, LACKS_INT4_KERNEL)
