"""The part of a model that computes some of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

from qdq.graph.bodies import list_names, names_captured_by, node_bodies
from qdq.graph.plugins import DEFAULT_DOMAINS
from qdq.graph.source import copy_fields

#: A Loop's inputs before its states, and the outputs of its body before them.
_LOOP_INPUTS, _LOOP_CONDITION = 2, 1

#: Attributes of a Scan with one number for each output that is stacked.
_SCAN_ATTRIBUTES = ("scan_output_axes", "scan_output_directions")


def extract_subgraph(model: ModelProto, outputs: Iterable[str]) -> ModelProto:
    """Return a model that computes some tensors of a model's main graph, and nothing else.

    It keeps all inputs that must be fed. Bodies keep the outputs that are read, and what these
    need.
    """
    part = ModelProto()
    copy_fields(model, part, excluded="graph")
    graph, whole = part.graph, model.graph
    graph.name = whole.name
    for field in ("node", "value_info", "sparse_initializer"):
        getattr(graph, field).extend(getattr(whole, field))
    declared = {value.name: value for value in whole.output}
    for name in outputs:
        graph.output.append(declared.get(name, ValueInfoProto(name=name)))
    needed = _trim_nodes(graph, set(list_names(graph.output)))
    removed: set[str] = set()
    for tensor in whole.initializer:
        if tensor.name in needed:
            graph.initializer.append(tensor)
        else:
            removed.add(tensor.name)
    # Without its initializer, a weight that is listed as an input would have to be fed.
    graph.input.extend(value for value in whole.input if value.name not in removed)
    return part


def iterate_needed_nodes(graph: GraphProto, outputs: Iterable[str]) -> Iterator[NodeProto]:
    """Yield the nodes that compute some tensors of a graph, and those in their bodies."""
    needed = set(outputs)
    for node in reversed(graph.node):
        if needed.isdisjoint(filter(None, node.output)):
            continue
        yield node
        needed.update(node.input)
        unread = [_body_position(node, i) for i in _find_unread_outputs(node, needed)]
        for _, body in node_bodies(node):
            read = [value.name for i, value in enumerate(body.output) if i not in unread]
            needed.update(read)
            for body_node in iterate_needed_nodes(body, read):
                yield body_node
                needed.update(body_node.input)


def _trim_nodes(graph: GraphProto, outputs: set[str]) -> set[str]:
    """Remove the nodes of a graph that some tensors do not need, and return all names they read."""
    needed = set(outputs)
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if needed.isdisjoint(filter(None, node.output)):
            continue
        _trim_bodies(node, needed)
        kept.append(node)
        needed.update(node.input)
        needed |= names_captured_by(node)
    copies = GraphProto(node=reversed(kept))
    del graph.node[:]
    graph.node.extend(copies.node)
    return needed


def _trim_bodies(node: NodeProto, needed: set[str]) -> None:
    """Remove the outputs of a node that nothing needs, and what its bodies compute for them."""
    bodies = node_bodies(node)
    if not bodies:
        return
    for position in sorted(_find_unread_outputs(node, needed), reverse=True):
        _remove_output(node, position)
    for _, body in bodies:
        read = _trim_nodes(body, set(list_names(body.output)))
        copies = GraphProto(initializer=[t for t in body.initializer if t.name in read])
        del body.initializer[:]
        body.initializer.extend(copies.initializer)


def _find_unread_outputs(node: NodeProto, needed: set[str]) -> Iterator[int]:
    """Yield the positions of outputs that a node with bodies can do without."""
    if node.domain not in DEFAULT_DOMAINS or node.op_type not in ("If", "Loop", "Scan"):
        return
    _, body = node_bodies(node)[0]
    count = len(body.output) - _body_position(node, 0)
    for position in range(_count_states(node), count):
        # a node may omit its last outputs
        if not needed.intersection(node.output[position : position + 1]):
            yield position


def _count_states(node: NodeProto) -> int:
    """Return the number of outputs that each iteration passes on to the next."""
    if node.op_type == "Loop":
        return max(len(node.input) - _LOOP_INPUTS, 0)
    scan_inputs = 0
    for attribute in node.attribute:
        if attribute.name == "num_scan_inputs":
            scan_inputs = attribute.i
    return len(node.input) - scan_inputs if node.op_type == "Scan" else 0


def _body_position(node: NodeProto, position: int) -> int:
    """Return the position in a body of the output that a node returns at a position."""
    return position + _LOOP_CONDITION if node.op_type == "Loop" else position


def _remove_output(node: NodeProto, position: int) -> None:
    for attribute in node.attribute:
        if attribute.name in _SCAN_ATTRIBUTES:
            del attribute.ints[position - _count_states(node)]
    for _, body in node_bodies(node):
        del body.output[_body_position(node, position)]
    del node.output[position : position + 1]
