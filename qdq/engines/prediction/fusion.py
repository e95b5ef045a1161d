"""Which nodes TensorRT runs as one layer: its documented layer fusions.

Source: TensorRT documentation, layer fusion catalog (point-wise fusion; shuffle and shuffle;
reduce to pooling) and Q/DQ placement recommendations. Fusions with convolutions and matrix
products are in `weighted_fusion`.
"""

from __future__ import annotations

from collections.abc import Iterator

from qdq.engines.prediction.fusion_group import POINTWISE, FusionGroup
from qdq.engines.prediction.qdq_propagation import QuantizationFlow
from qdq.engines.prediction.weighted_fusion import fuse_weighted
from qdq.graph.index import Node
from qdq.graph.operands import operands
from qdq.graph.operators import POOLING_LAYERS, PRODUCTS, RECURRENT, SHUFFLES
from qdq.graph.patterns import is_spatial_mean


def fuse_nodes(flow: QuantizationFlow) -> tuple[FusionGroup, ...]:
    """Return the layers of a graph, in an order in which they can run."""
    fused_ids: set[int] = set()
    groups = list(_fuse_products(flow, fused_ids))
    pointwise = []
    shuffles = []
    for node in flow.nodes:
        if id(node) in fused_ids:
            continue
        if node.op in POINTWISE:
            pointwise.append(node)
        elif node.op in SHUFFLES:
            shuffles.append(node)
        else:
            group = FusionGroup(
                family=_family(flow, node),
                nodes=(node,),
                core=node,
                output=node.outputs[0],
            )
            groups.append(group)
    groups.extend(_fuse_chains(flow, pointwise, "pointwise"))
    groups.extend(_fuse_chains(flow, shuffles, "shuffle"))
    groups.sort(key=lambda group: group.nodes[-1].position)
    return tuple(groups)


def _fuse_products(flow: QuantizationFlow, fused_ids: set[int]) -> Iterator[FusionGroup]:
    """Yield the groups of weighted nodes, and add the `id` of each member to `fused_ids`.

    The last node comes first, so that it takes a residual Add.
    """
    for node in reversed(flow.nodes):
        is_free_product = node.op in PRODUCTS and id(node) not in fused_ids
        if not is_free_product or not operands(flow.index, node):
            continue
        group = fuse_weighted(flow, node, fused_ids)
        fused_ids.update(map(id, group.nodes))
        yield group


def _family(flow: QuantizationFlow, node: Node) -> str:
    if node.op in POOLING_LAYERS or is_spatial_mean(flow.index, node):
        return "pool"
    if node.op in RECURRENT:
        return "recurrent"
    if node.op == "Concat":
        return "concat"
    return "other"


def _fuse_chains(flow: QuantizationFlow, nodes: list[Node], family: str) -> Iterator[FusionGroup]:
    """Yield groups of nodes of one family in which only members read the tensors between them."""
    chain_of: dict[int, list[Node]] = {}
    for node in nodes:
        chain_of[id(node)] = [node]
        for producer in _find_producers(flow, node):
            _join_chains(flow, producer, node, chain_of)
    chains = {id(chain): chain for chain in chain_of.values()}
    for chain in chains.values():
        chain.sort(key=lambda member: member.position)
        last = chain[-1]
        yield FusionGroup(
            family=family,
            nodes=tuple(chain),
            core=chain[0],
            output=last.outputs[0],
        )


def _join_chains(
    flow: QuantizationFlow, producer: Node, node: Node, chain_of: dict[int, list[Node]]
) -> None:
    """Join the chains of a node and its producer if no node outside reads between them."""
    chain = chain_of[id(node)]
    producer_chain = chain_of.get(id(producer))
    if producer_chain is None or producer_chain is chain:
        return
    if not _is_read_inside(flow, producer.outputs[0], node, producer_chain, chain_of):
        return
    shorter, longer = sorted((chain, producer_chain), key=len)
    longer.extend(shorter)
    for member in shorter:
        chain_of[id(member)] = longer


def _is_read_inside(
    flow: QuantizationFlow,
    tensor: str,
    node: Node,
    chain: list[Node],
    chain_of: dict[int, list[Node]],
) -> bool:
    """Whether only `node` and the members of a chain read a tensor."""
    if flow.quantized_reads.get(tensor) or tensor in flow.outputs:
        return False
    for reader, _ in flow.float_readers.get(tensor, ()):
        is_inside = reader is node or chain_of.get(id(reader)) is chain
        if not is_inside:
            return False
    return True


def _find_producers(flow: QuantizationFlow, node: Node) -> Iterator[Node]:
    for _, read in flow.inputs(node):
        producer = flow.index.producers.get(read.tensor)
        if producer is not None and not read.quantization:
            yield producer
