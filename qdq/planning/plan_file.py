"""Plan files: YAML that is made to be read and edited in review."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from qdq.errors import PlanError, QdqError, RuleError, first_line
from qdq.files.command_files import note_input
from qdq.files.strict_yaml import LocatedMapping, parse_text_yaml
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.planning.decisions import (
    GRAPH_REASONS,
    KeptFp32,
    LeftFloat,
    Placement,
    Plan,
    ScaleGroup,
)
from qdq.planning.plan_document import PlanFile, parse_plan_file

#: Version of the plan file's layout.
PLAN_VERSION = "2"

_NO_WRAPPING = 1_000_000

#: Texts that need no quotes in YAML: none that begins and goes on like this is a number or a date.
_PLAIN_TEXT = re.compile(r"[A-Za-z/_](?:[\w./-]|::(?=\w))*", re.ASCII)
_YAML_KEYWORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}

#: Graph and label of a node.
_NodeKey = tuple[str, str]

#: Slot and line of each edge of a node.
_EdgeLines = list[tuple[int, str]]


def plan_to_yaml(plan: Plan, index: GraphIndex | None = None) -> str:
    """Return a plan as YAML: one block per node, in it one line per edge, then the scale groups.

    With the model's index the blocks are in graph order and name their operators; without it they
    are in plan order.
    """
    reasons = _common_reasons((*plan.left_float, *(plan.keep_fp32 or ())))
    lines_by_node = _edge_lines_by_node(plan, reasons)
    if index is not None:
        lines_by_node = _sort_by_graph_order(lines_by_node, index)
    layers: list[str] = []
    for node_key, edge_lines in lines_by_node.items():
        layer = _format_layer(node_key, edge_lines, index)
        layers.append(layer)
    groups = [_format_group(group) for group in plan.scale_groups]
    parts = [
        _format_head(plan, reasons),
        _format_list("layers", layers),
        _format_list("scale_groups", groups),
    ]
    if plan.float_type:
        kept = [_format_kept(node, reasons) for node in plan.keep_fp32 or ()]
        parts.append(_format_list("keep_fp32", kept))
    return "".join(parts)


def _format_head(plan: Plan, reasons: dict[str, str]) -> str:
    head: dict[str, Any] = {
        "qdq_plan": int(PLAN_VERSION),
        "model": plan.model,
        "digest": plan.digest,
        "notes": list(plan.notes),
        "targets": list(map(str, plan.targets)),
        "rule_sets": list(plan.rule_sets),
        "leave_float": list(plan.leave_float),
    }
    if plan.float_type:
        head["float_type"] = plan.float_type
    if plan.sensitive:
        head["sensitive"] = list(map(str, plan.sensitive))
    if plan.profiles:
        head["profiles"] = list(map(str, plan.profiles))
    head["reasons"] = reasons
    text: str = yaml.safe_dump(head, sort_keys=False, width=_NO_WRAPPING)
    return text


def _format_list(key: str, entries: list[str]) -> str:
    if not entries:
        return f"\n{key}: []\n"
    text = "".join(entries)
    return f"\n{key}:\n{text}"


def _common_reasons(decisions: Iterable[LeftFloat | KeptFp32]) -> dict[str, str]:
    """Return the reason of each rule that keeps something in float, where it is always the same."""
    reasons_by_rule: dict[str, set[str]] = {}
    for item in decisions:
        reasons = reasons_by_rule.setdefault(item.because, set())
        reasons.add(item.reason)
    common: dict[str, str] = {}
    for rule in sorted(reasons_by_rule):
        reasons = reasons_by_rule[rule]
        if len(reasons) == 1 and rule not in GRAPH_REASONS:
            (common[rule],) = reasons
    return common


def _edge_lines_by_node(plan: Plan, reasons: dict[str, str]) -> dict[_NodeKey, _EdgeLines]:
    """Return slot and line of each edge by graph and node, in plan order."""
    lines_by_node: dict[_NodeKey, _EdgeLines] = {}

    def add_line(edge: Edge, decision: str) -> None:
        tensor = _quote(edge.tensor)
        line = f"  - {{slot: {edge.slot}, tensor: {tensor}, {decision}}}\n"
        node_lines = lines_by_node.setdefault((edge.graph, edge.node), [])
        node_lines.append((edge.slot, line))

    for placement in plan.placements:
        decision = _format_placement(placement)
        add_line(placement.edge, decision)
    for item in plan.left_float:
        decision = _format_left_float(item, reasons)
        add_line(item.edge, decision)
    return lines_by_node


def _format_placement(placement: Placement) -> str:
    name = _quote(placement.quantizer.name)
    axis = placement.quantizer.axis
    rules = _format_texts(placement.because)
    if axis is None:
        return f"quantize: {name}, because: {rules}"
    return f"quantize: {name}, axis: {axis}, because: {rules}"


def _format_left_float(item: LeftFloat, reasons: dict[str, str]) -> str:
    rule = _quote(item.because)
    if reasons.get(item.because) == item.reason:
        return f"float: {rule}"
    reason = _quote(item.reason)
    return f"float: {rule}, why: {reason}"


def _format_kept(kept: KeptFp32, reasons: dict[str, str]) -> str:
    node = _quote(kept.node)
    rule = _quote(kept.because)
    if reasons.get(kept.because) == kept.reason:
        return f"- {{node: {node}, because: {rule}}}\n"
    reason = _quote(kept.reason)
    return f"- {{node: {node}, because: {rule}, why: {reason}}}\n"


def _sort_by_graph_order(
    lines_by_node: dict[_NodeKey, _EdgeLines], index: GraphIndex
) -> dict[_NodeKey, _EdgeLines]:
    """Return the lines with the main graph first, then the bodies, and unknown nodes last."""
    positions: dict[_NodeKey, tuple[int, int]] = {}
    for scope_number, (path, scope) in enumerate(index.scopes.items()):
        for node in scope.nodes:
            positions[path, node.label] = (scope_number, node.position)
    last = (len(positions), 0)
    node_keys = sorted(lines_by_node, key=lambda node_key: positions.get(node_key, last))
    return {node_key: lines_by_node[node_key] for node_key in node_keys}


def _format_layer(node_key: _NodeKey, edge_lines: _EdgeLines, index: GraphIndex | None) -> str:
    graph, label = node_key
    lines = [_format_entry("- node", label)]
    if graph:
        lines.append(_format_entry("  graph", graph))
    node = _find_node(index, node_key)
    if node is not None:
        lines.append(_format_entry("  op", node.op))
    lines.append("  edges:\n")
    for _, line in sorted(edge_lines):
        lines.append(line)
    return "".join(lines)


def _format_entry(key: str, text: str) -> str:
    quoted = _quote(text)
    return f"{key}: {quoted}\n"


def _find_node(index: GraphIndex | None, node_key: _NodeKey) -> Node | None:
    if index is None:
        return None
    graph, label = node_key
    scope = index.scopes.get(graph)
    return scope.by_label.get(label) if scope else None


def _format_group(group: ScaleGroup) -> str:
    tensors = _format_list_of_texts(group.tensors)
    rules = _format_texts(group.because)
    lines = [f"- tensors: {tensors}\n", f"  because: {rules}\n"]
    ratio = group.ratio_at_most
    if ratio is not None:
        lines.append(f"  ratio_at_most: {ratio!r}\n")
    return "".join(lines)


def _format_texts(texts: tuple[str, ...]) -> str:
    """Return a single text as it is, several as a list."""
    if len(texts) == 1:
        return _quote(texts[0])
    return _format_list_of_texts(texts)


def _format_list_of_texts(texts: tuple[str, ...]) -> str:
    items = ", ".join(map(_quote, texts))
    return f"[{items}]"


def _quote(text: str) -> str:
    """Return a text as YAML reads it back, in quotes where it needs them."""
    if _PLAIN_TEXT.fullmatch(text) and text.lower() not in _YAML_KEYWORDS:
        return text
    if text.isascii() and text.isprintable():
        escaped = text.replace("\\", r"\\").replace('"', r"\"")
        return f'"{escaped}"'
    quoted: str = yaml.safe_dump(text, default_style='"', width=_NO_WRAPPING)
    return quoted.strip()


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError with the file, the line and the mistake."""
    return read_plan_file(path).plan


def read_plan_file(path: Path) -> PlanFile:
    """Return the plan in a file with the lines of its parts.

    Raises PlanError with the file, the line and the mistake.
    """
    content = _read_content(path)
    try:
        return parse_plan_file(path, content)
    except QdqError as error:
        raise PlanError(f"{path}:{error}") from error


def _read_content(path: Path) -> LocatedMapping:
    """Return a plan file's mapping; raises PlanError for other files and other layouts."""
    text = read_plan_bytes(path)
    try:
        content = parse_text_yaml(text)
        _require_layout(content)
    except (yaml.YAMLError, RuleError, PlanError, ValueError, RecursionError) as error:
        problem = first_line(error).rstrip(".")
        raise PlanError(
            f"{path}: the file is not a plan that qdq can read: {problem}. "
            "Make one with 'qdq plan'."
        ) from error
    mapping: LocatedMapping = content
    return mapping


def _require_layout(content: Any) -> None:
    if not isinstance(content, LocatedMapping) or "qdq_plan" not in content:
        raise PlanError("it has no 'qdq_plan'")
    version = content["qdq_plan"]
    if version != PLAN_VERSION:
        raise PlanError(f"its layout is version {version}, but this qdq reads {PLAN_VERSION}")


def read_plan_bytes(path: Path) -> bytes:
    """Return the bytes of a plan or scales file; raises PlanError where it cannot be read."""
    note_input(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(
            f"{path}: the file cannot be read: {error.strerror}. Check the path."
        ) from error
