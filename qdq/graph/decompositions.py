"""Normalisations and activations that an exporter wrote as several simple nodes."""

from __future__ import annotations

from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import Node
from qdq.graph.neighbors import (
    find_input_producer,
    has_constant_input,
    list_input_producers,
    list_readers,
)

_SCALINGS = ("Mul", "Div")


def find_decomposed_normalization(index: CompilerView, root: Node) -> set[str]:
    """Return the labels of the nodes of a normalisation, by the Sqrt in it.

    The nodes are those of mean, difference, square, mean, Add of epsilon, root and division.
    The set is empty for a Sqrt of something else.
    """
    nodes = [root]
    for operators in (("Add",), ("ReduceMean",), ("Pow", "Mul")):
        producer = find_input_producer(index, nodes[-1], operators)
        if producer is None:
            return set()
        nodes.append(producer)
    nodes += _find_difference(index, nodes[-1])
    divisions = list_readers(index, [root], ("Div", "Reciprocal"))
    if not divisions:
        return set()
    reciprocals = [node for node in divisions if _is_reciprocal(index, node)]
    scalings = list_readers(index, reciprocals, ("Mul",))
    return {node.label for node in (*nodes, *divisions, *scalings)}


def _find_difference(index: CompilerView, square: Node) -> list[Node]:
    """Return the Sub of the mean before the square of a normalisation, and that mean."""
    difference = find_input_producer(index, square, ("Sub",))
    if difference is None:
        return []
    mean = find_input_producer(index, difference, ("ReduceMean",))
    return [difference] if mean is None else [difference, mean]


def _is_reciprocal(index: CompilerView, division: Node) -> bool:
    return division.op == "Reciprocal" or index.is_constant(division.inputs[0])


def find_decomposed_gelu(index: CompilerView, curve: Node) -> set[str]:
    """Return the labels of the nodes of a Gelu, x * (1 + curve(...)) / 2, by its Erf or Tanh.

    It may be halved at any of three places. The set is empty for a curve of something else.
    """
    argument = _find_gelu_argument(index, curve)
    shifts = _with_constant(index, list_readers(index, [curve], ("Add",)))
    if len(shifts) != 1 or not argument:
        return set()
    factors = list_readers(index, shifts, ("Mul",))
    after = list_readers(index, factors, _SCALINGS)
    before = list_input_producers(index, factors, _SCALINGS)
    halvings = _with_constant(index, [*factors, *after, *before])
    products = []
    for node in (*factors, *after):
        if node.op == "Mul" and _is_gelu_product(index, node, argument):
            products.append(node)
    if not products or not halvings:
        return set()
    nodes = (curve, *argument, *shifts, *factors, *halvings, *products)
    return {node.label for node in nodes}


def _find_gelu_argument(index: CompilerView, curve: Node) -> list[Node]:
    """Return the nodes that compute a Gelu's inner argument, empty for something else.

    It is x / sqrt(2) for Erf, and sqrt(2/pi) * (x + 0.044715 * x^3) for Tanh.
    """
    scaling = find_input_producer(index, curve, ("Div", "Mul"))
    if scaling is None or not has_constant_input(index, scaling):
        return []
    nodes = [scaling]
    if curve.op != "Tanh":
        return nodes
    for operators in (("Add",), ("Mul",), ("Pow", "Mul")):
        producer = find_input_producer(index, nodes[-1], operators)
        if producer is None:
            break
        nodes.append(producer)
    return nodes


def _with_constant(index: CompilerView, nodes: list[Node]) -> list[Node]:
    return [node for node in nodes if has_constant_input(index, node)]


def _is_gelu_product(index: CompilerView, product: Node, argument: list[Node]) -> bool:
    """Whether a Mul multiplies a tensor that a Gelu's argument is computed from, perhaps halved."""
    if has_constant_input(index, product):
        return False
    multiplied = set(product.inputs)
    for node in _with_constant(index, list_input_producers(index, [product], _SCALINGS)):
        multiplied.update(node.inputs)
    return any(not multiplied.isdisjoint(node.inputs) for node in argument)
