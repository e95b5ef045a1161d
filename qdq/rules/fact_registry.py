"""The registry of facts: the names under which rules use functions of a node or of an edge."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qdq.graph.bodies import qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.float_types import FP32, FloatType
from qdq.target import Target


@dataclass(frozen=True)
class Scene:
    """The input of every fact: the graph as compilers read it, and the targets of the plan."""

    index: CompilerView
    targets: tuple[Target, ...]
    #: The type that the float part of the model gets.
    float_type: FloatType = FP32
    #: The largest absolute value of each tensor that was observed, by its qualified name.
    amax: Mapping[str, float] = field(default_factory=dict)

    def largest_value(self, tensor: str) -> float | None:
        """Return the largest absolute value that was observed in a tensor; None where none was.

        A tensor from outside of a body may have been observed there or in the body.
        """
        scope: CompilerView | None = self.index
        while scope is not None:
            amax = self.amax.get(qualified_name(scope.path, tensor))
            if amax is not None:
                return amax
            scope = scope.outer
        return None


#: A fact may require numbers, as keyword-only parameters; a rule states them under ``given``.
NodeFact = Callable[..., bool]
EdgeFact = Callable[..., bool]
NODE_FACTS: dict[str, NodeFact] = {}
EDGE_FACTS: dict[str, EdgeFact] = {}


def node_fact(function: NodeFact) -> NodeFact:
    """Register a function of a node under its name in kebab-case."""
    NODE_FACTS[_kebab_case(function.__name__)] = function
    return function


def edge_fact(function: EdgeFact) -> EdgeFact:
    """Register a function of an edge under its name in kebab-case."""
    EDGE_FACTS[_kebab_case(function.__name__)] = function
    return function


def fact_parameters(fact: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the numbers that a fact requires, in kebab-case."""
    parameters = inspect.signature(fact).parameters.values()
    return tuple(_kebab_case(p.name) for p in parameters if p.kind is p.KEYWORD_ONLY)


def _kebab_case(name: str) -> str:
    return name.replace("_", "-")
