"""Which inputs and outputs of If, Loop and Scan hold the same tensor as those of their bodies.

Source: the operators' definitions in ONNX.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from onnx import GraphProto

from qdq.graph.index import Node

_LOOP_CONTROLS = 2


class BodyLink(msgspec.Struct, frozen=True):
    """Positions that share a type: of the node and of its body; None where there is none."""

    node_input: int | None = None
    body_input: int | None = None
    body_output: int | None = None
    node_output: int | None = None


def list_body_links(node: Node, body: GraphProto) -> tuple[BodyLink, ...]:
    """Return the links between a node and a body of it: states first; none for other operators."""
    if node.op == "If":
        return tuple(_link_results(0, len(body.output), 0))
    if node.op == "Loop":
        return tuple(_link_loop(node, body))
    if node.op == "Scan":
        return tuple(_link_scan(node, body))
    return ()


def _link_loop(node: Node, body: GraphProto) -> Iterator[BodyLink]:
    states = len(node.inputs) - _LOOP_CONTROLS
    for state in range(states):
        position = state + _LOOP_CONTROLS
        yield BodyLink(position, position, state + 1, state)
    yield from _link_results(states + 1, len(body.output), states)


def _link_scan(node: Node, body: GraphProto) -> Iterator[BodyLink]:
    scanned = int(node.attribute("num_scan_inputs", 0))
    states = len(body.input) - scanned
    for state in range(states):
        yield BodyLink(state, state, state, state)
    for position in range(states, len(body.input)):
        yield BodyLink(position, position)
    yield from _link_results(states, len(body.output), states)


def _link_results(first: int, end: int, node_output: int) -> Iterator[BodyLink]:
    """Yield the links of the body's outputs from a position on."""
    for body_output in range(first, end):
        yield BodyLink(body_output=body_output, node_output=node_output)
        node_output += 1
