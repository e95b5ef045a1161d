"""The nodes that rules keep in FP32, in a plan whose float part becomes FP16 or BF16.

Ranges are unknown to a plan. So what calibration would show to overflow is not among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from qdq.graph.bodies import qualified_name
from qdq.graph.compiler_view import CompilerView
from qdq.graph.float_nodes import has_float32
from qdq.graph.index import GraphIndex
from qdq.planning.decisions import KeptFp32, Plan
from qdq.planning.plan_request import PlanRequest
from qdq.rules.facts import Scene
from qdq.rules.matcher import match_kept_nodes
from qdq.rules.rule_files import choose_float_rules


def state_kept_nodes(plan: Plan, index: GraphIndex, request: PlanRequest) -> Plan:
    """Return a plan with the nodes that keep-fp32 rules keep, where its float type is short."""
    if not request.float_type.is_short:
        return plan
    kept = tuple(_find_kept_nodes(index, request))
    return msgspec.structs.replace(plan, keep_fp32=kept or msgspec.UNSET)


def _find_kept_nodes(index: GraphIndex, request: PlanRequest) -> Iterator[KeptFp32]:
    """Yield the nodes of all graphs that rules keep, in graph order."""
    rules = choose_float_rules(request.rules)
    view = CompilerView(index)
    for path, scope in index.scopes.items():
        scene = Scene(view.scopes[path], request.targets, request.float_type)
        rules_by_label = match_kept_nodes(scene, rules)
        for node in scope.nodes:
            keeping = rules_by_label.get(node.label, ())
            if keeping and has_float32(scope, node):
                names = ", ".join(rule.name for rule in keeping)
                yield KeptFp32(qualified_name(path, node.label), names, keeping[0].says)
