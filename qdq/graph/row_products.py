"""Products of an attention's result and an INT4 weight, written so that compilers keep the INT4.

TensorRT-RTX 1.7.1 fuses an attention in 16 bits into one kernel. Where the batch is 1, it then
dequantizes the weight of the product behind it in a kernel of its own. It does not where each row
is a matrix of its own: [batch, rows, 1, values] instead of [batch, rows, values]. So an Unsqueeze
is before the product and a Squeeze behind it, which move nothing, and which stripping removes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.graph.aliases import is_float_cast
from qdq.graph.index import GraphIndex, Node
from qdq.graph.metadata import ROWS_KEY
from qdq.graph.operators import MOVES_VALUES
from qdq.graph.pairs import count_readers
from qdq.graph.qdq_graph import QdqGraph
from qdq.graph.quantized_operators import DEQUANTIZE
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames

#: The ranks of the products that are written otherwise, and the axis of one element. Exports that
#: compute the shape of a Reshape leave the rank unknown; the form is right for any.
_RANKS = (3, None)
_AXIS = -2

_OPERAND_COUNT = 2

#: The domain and the operator of a node that is written before a product.
_MARKED = ("", "Unsqueeze")
_SHORT_TYPES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def write_row_products(source: Source) -> ModelProto:
    """Return a model whose products behind an attention have a matrix for each row.

    They are MatMuls in FP16 or BF16 with a weight that a DQ in blocks computes. The model itself
    where there are none.
    """
    index = GraphIndex(source)
    outputs = {node.outputs[0] for node in index.nodes if _is_behind_attention(index, node)}
    if not outputs:
        return source.model
    model = ModelProto()
    model.CopyFrom(source.model)
    names = UniqueNames(model.graph, include_value_info=True)
    axis = names.fresh("row_product_axis")
    model.graph.initializer.append(numpy_helper.from_array(np.array([_AXIS]), axis))
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        written = _write_rows(node, axis, names) if outputs.intersection(node.output) else [node]
        nodes.extend(written)
    _replace_nodes(model.graph, nodes)
    return model


def _is_behind_attention(index: GraphIndex, node: Node) -> bool:
    """Whether a node multiplies an attention's result in 16 bits with a weight in blocks."""
    if node.op != "MatMul" or index.rank(node.inputs[0]) not in _RANKS:
        return False
    if index.elem_type(node.inputs[0]) not in _SHORT_TYPES:
        return False
    return _reads_blocks(index, node) and _mixes_values(index, node.inputs[0])


def _reads_blocks(index: GraphIndex, node: Node) -> bool:
    """Whether the second operand is the result of a DQ in blocks, perhaps cast."""
    producer = index.producers.get(node.inputs[1])
    while producer is not None and is_float_cast(index, producer):
        producer = index.producers.get(producer.inputs[0])
    if producer is None or producer.op != DEQUANTIZE:
        return False
    return bool(producer.attribute("block_size", 0))


def _mixes_values(index: GraphIndex, tensor: str) -> bool:
    """Whether a tensor is the moved product of two computed tensors."""
    producer = index.producers.get(tensor)
    is_transposed = False
    while producer is not None and (producer.op in MOVES_VALUES or is_float_cast(index, producer)):
        is_transposed = is_transposed or producer.op == "Transpose"
        producer = index.producers.get(producer.inputs[0])
    if producer is None or producer.op != "MatMul" or not is_transposed:
        return False
    operands = producer.inputs[:_OPERAND_COUNT]
    return not any(index.is_constant(operand) for operand in operands)


def _write_rows(node: NodeProto, axis: str, names: UniqueNames) -> list[NodeProto]:
    """Return a product between an Unsqueeze and a Squeeze."""
    tensor, output = node.input[0], node.output[0]
    rows, result = names.fresh(f"{tensor}_rows"), names.fresh(f"{output}_rows")
    product = NodeProto()
    product.CopyFrom(node)
    product.input[0] = rows
    product.output[0] = result
    unsqueeze = helper.make_node("Unsqueeze", [tensor, axis], [rows], name=names.fresh(rows))
    squeeze = helper.make_node("Squeeze", [result, axis], [output], name=names.fresh(result))
    for added in (unsqueeze, squeeze):
        added.metadata_props.add(key=ROWS_KEY, value=node.name)
    return [unsqueeze, product, squeeze]


def find_row_products(graph: QdqGraph) -> dict[str, str]:
    """Return the results of products that were written for each row, and their first names."""
    if _MARKED not in graph.all_operators:
        return {}
    return {squeeze.input[0]: squeeze.output[0] for _, _, squeeze in _find_parts(graph.graph)}


def remove_row_products(model: ModelProto) -> None:
    """Write the products of a model as they were, and remove the axis that only they read."""
    parts = list(_find_parts(model.graph))
    if not parts:
        return
    axes: set[str] = set()
    removed: set[str] = set()
    for unsqueeze, product, squeeze in parts:
        product.input[0] = unsqueeze.input[0]
        product.output[0] = squeeze.output[0]
        axes.add(unsqueeze.input[1])
        removed.update((unsqueeze.name, squeeze.name))
    _replace_nodes(model.graph, [node for node in model.graph.node if node.name not in removed])
    readers = count_readers(model.graph)
    initializers = model.graph.initializer
    for position in reversed(range(len(initializers))):
        if initializers[position].name in axes and not readers[initializers[position].name]:
            del initializers[position]


def _find_parts(graph: GraphProto) -> Iterator[tuple[NodeProto, NodeProto, NodeProto]]:
    """Yield the Unsqueeze, the product and the Squeeze of each product that was written so."""
    marked = [node for node in graph.node if _is_marked(node)]
    unsqueezes = {node.output[0]: node for node in marked if node.op_type == "Unsqueeze"}
    squeezes = {node.input[0]: node for node in marked if node.op_type == "Squeeze"}
    for node in graph.node:
        if node.op_type != "MatMul" or node.output[0] not in squeezes:
            continue
        unsqueeze = unsqueezes.get(node.input[0])
        if unsqueeze is not None:
            yield unsqueeze, node, squeezes[node.output[0]]


def _is_marked(node: NodeProto) -> bool:
    return any(entry.key == ROWS_KEY for entry in node.metadata_props)


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    kept = GraphProto()  # holds copies: most of the nodes belong to the graph
    kept.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(kept.node)
