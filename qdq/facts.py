"""The words that rules may use: each a pure function of the graph, documented by its docstring.

A fact about nodes may stand behind `from` and `into`; a fact about edges behind `edge`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qdq.index import Edge, GraphIndex, Node
from qdq.kernels import is_spatial_mean, missing_kernel
from qdq.operands import is_operand, operands
from qdq.residual import fused_convolution, residual_slot
from qdq.target import Target


@dataclass(frozen=True)
class Scene:
    """What facts may look at: the graph and what the plan is for."""

    index: GraphIndex
    targets: tuple[Target, ...]


#: A fact may ask for numbers, as keyword-only parameters; a rule gives them under ``given``.
NodeFact = Callable[..., bool]
EdgeFact = Callable[..., bool]

NODE_FACTS: dict[str, NodeFact] = {}
EDGE_FACTS: dict[str, EdgeFact] = {}

#: Operators that only move values, so that quantizing before or after them is the same.
MOVES_VALUES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def node_fact(function: NodeFact) -> NodeFact:
    """Register a function of a node under its name in kebab-case."""
    NODE_FACTS[function.__name__.replace("_", "-")] = function
    return function


def edge_fact(function: EdgeFact) -> EdgeFact:
    """Register a function of an edge under its name in kebab-case."""
    EDGE_FACTS[function.__name__.replace("_", "-")] = function
    return function


def parameters(fact: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the numbers that a fact asks for, in kebab-case."""
    asked = inspect.signature(fact).parameters.values()
    return tuple(p.name.replace("_", "-") for p in asked if p.kind is p.KEYWORD_ONLY)


@node_fact
def weighted(scene: Scene, node: Node) -> bool:
    """A Conv, ConvTranspose, Gemm or MatMul of float operands, of which at least one is computed."""
    return bool(operands(scene.index, node))


@node_fact
def averaging_pool(scene: Scene, node: Node) -> bool:
    """An AveragePool, GlobalAveragePool or spatial ReduceMean whose result goes only into weighted operators."""
    index = scene.index
    pools = node.op in ("AveragePool", "GlobalAveragePool") or (node.op == "ReduceMean" and is_spatial_mean(index, node))
    ends = reached_through_moves(index, node.outputs[0]) if pools else ()
    return bool(ends) and all(is_operand(index, edge) for edge in ends)


@node_fact
def lacks_int8_kernel(scene: Scene, node: Node) -> bool:
    """A layer that has no INT8 kernel on one of the plan's targets, as its kernel table says; or an Add fused to such a one."""
    if node.op == "Add":
        slot = residual_slot(scene.index, node)
        fused = None if slot is None else fused_convolution(scene.index, Edge("", node.label, slot, node.inputs[slot]))
        return fused is not None and lacks_int8_kernel(scene, fused)
    return any(missing_kernel(scene.index, node, target) for target in scene.targets)


@edge_fact
def computed_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is computed while the model runs."""
    return not scene.index.is_constant(edge.tensor) and is_operand(scene.index, edge)


@edge_fact
def constant_operand(scene: Scene, edge: Edge) -> bool:
    """An operand of a weighted operator that is known from the file: its weight."""
    return scene.index.is_constant(edge.tensor) and is_operand(scene.index, edge)


@edge_fact
def residual_branch(scene: Scene, edge: Edge) -> bool:
    """The operand of a residual Add that is not the convolution TensorRT fuses with it."""
    return residual_slot(scene.index, scene.index.node(edge)) == edge.slot


@edge_fact
def first_input(scene: Scene, edge: Edge) -> bool:
    """The first input slot of a node: the data of pooling, normalisation and activation operators."""
    return edge.slot == 0


def reached_through_moves(index: GraphIndex, tensor: str) -> tuple[Edge, ...]:
    """Return the edges a tensor reaches through operators that only move values; none if it reaches a graph output."""
    if tensor in index.outputs:
        return ()
    ends: list[Edge] = []
    for edge in index.edges_of(tensor):
        node = index.node(edge)
        if node.op in MOVES_VALUES and edge.slot == 0:
            beyond = reached_through_moves(index, node.outputs[0])
            if not beyond:
                return ()
            ends.extend(beyond)
        elif node.op != "Shape":
            ends.append(edge)
    return tuple(ends)
