"""Plans and scales as files: a plan is YAML made to be read and edited in review, scales are JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from qdq.errors import PlanError, QdqError, RuleError, first_line
from qdq.files.strict_yaml import LocatedMapping, parse_text_yaml, read_choice, require_known_keys
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.shape_profiles import parse_profile
from qdq.planning.decisions import (
    BODY,
    FUNCTION,
    INCOMPLETE,
    LeftFloat,
    Placement,
    Plan,
    ScaleGroup,
)
from qdq.quantizer import FORMATS, Quantizer
from qdq.target import parse_target

#: Version of the plan file's layout.
PLAN_VERSION = "2"

#: The rule of an edge that a reviewer quantized without naming one.
BY_HAND = "by-hand"
_WIDE = 1_000_000
_HEAD = (
    "qdq_plan",
    "model",
    "digest",
    "notes",
    "targets",
    "rule_sets",
    "leave_float",
    "profiles",
    "reasons",
)
_LAYER = ("node", "graph", "op", "edges")
_EDGE = ("slot", "tensor", "quantize", "axis", "because", "float", "why")
_GROUP = ("tensors", "because", "ratio_at_most")

#: Texts that stand for themselves in YAML without quotes: no number, date, or other word begins with a letter or slash and goes on so.
_PLAIN = re.compile(r"[A-Za-z/_](?:[\w./-]|::(?=\w))*", re.ASCII)
_YAML_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


class PlanFile(msgspec.Struct, frozen=True):
    """A plan that was read from a file, and where in it everything stands."""

    path: Path
    plan: Plan
    #: The line of each edge, quantized or left in float.
    lines: dict[Edge, int]
    #: Operator and line of each node, by graph and label; "" where the file names no operator.
    nodes: dict[tuple[str, str], tuple[str, int]]
    #: The line of each scale group.
    groups: tuple[int, ...]


def plan_to_yaml(plan: Plan, index: GraphIndex | None = None) -> str:
    """Return a plan as YAML: a block for each node, in it a line for each edge, then the scale groups.

    With the model's index the blocks are in graph order and name their operators; without, they
    stand as the plan has them.
    """
    reasons = _common_reasons(plan.left_float)
    head = {
        "qdq_plan": int(PLAN_VERSION),
        "model": plan.model,
        "digest": plan.digest,
        "notes": list(plan.notes),
        "targets": [str(t) for t in plan.targets],
        "rule_sets": list(plan.rule_sets),
        "leave_float": list(plan.leave_float),
        **({"profiles": list(map(str, plan.profiles))} if plan.profiles else {}),
        "reasons": reasons,
    }
    blocks = [
        _block(graph, node, edges, index)
        for (graph, node), edges in _by_node(plan, reasons, index).items()
    ]
    groups = [_group(group) for group in plan.scale_groups]
    parts = [yaml.safe_dump(head, sort_keys=False, width=_WIDE)]
    for key, entries in (("layers", blocks), ("scale_groups", groups)):
        parts.append(f"\n{key}:\n{''.join(entries)}" if entries else f"\n{key}: []\n")
    return "".join(parts)


def _common_reasons(left: Iterable[LeftFloat]) -> dict[str, str]:
    """Return the sentence of each rule that leaves edges in float, where it is the same for all of them."""
    whys: dict[str, set[str]] = {}
    for item in left:
        whys.setdefault(item.because, set()).add(item.reason)
    return {
        rule: next(iter(said))
        for rule, said in sorted(whys.items())
        if len(said) == 1 and rule not in (INCOMPLETE, BODY, FUNCTION)
    }


def _by_node(
    plan: Plan, reasons: dict[str, str], index: GraphIndex | None
) -> dict[tuple[str, str], list[tuple[int, str]]]:
    """Return slot and line of each edge by graph and node, in graph order as far as the index knows it."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for p in plan.placements:
        axis = "" if p.quantizer.axis is None else f", axis: {p.quantizer.axis}"
        decision = f"quantize: {_quoted(p.quantizer.name)}{axis}, because: {_listed(p.because)}"
        found.setdefault((p.edge.graph, p.edge.node), []).append(
            (p.edge.slot, _edge_line(p.edge, decision))
        )
    for item in plan.left_float:
        why = "" if reasons.get(item.because) == item.reason else f", why: {_quoted(item.reason)}"
        line = _edge_line(item.edge, f"float: {_quoted(item.because)}{why}")
        found.setdefault((item.edge.graph, item.edge.node), []).append((item.edge.slot, line))
    places = _places(index) if index else {}
    return dict(sorted(found.items(), key=lambda entry: places.get(entry[0], (len(places), 0))))


def _places(index: GraphIndex) -> dict[tuple[str, str], tuple[int, int]]:
    """Return a number for each graph and node that sorts them: the main graph first, then the bodies, each in its own order."""
    graphs = enumerate(index.scopes.items())
    return {
        (path, node.label): (i, node.position)
        for i, (path, scope) in graphs
        for node in scope.nodes
    }


def _edge_line(edge: Edge, decision: str) -> str:
    return f"  - {{slot: {edge.slot}, tensor: {_quoted(edge.tensor)}, {decision}}}\n"


def _block(graph: str, node: str, edges: list[tuple[int, str]], index: GraphIndex | None) -> str:
    scope = index.scopes.get(graph) if index else None
    known = scope.by_label.get(node) if scope else None
    lines = [f"- node: {_quoted(node)}\n"]
    lines += [f"  graph: {_quoted(graph)}\n"] if graph else []
    lines += [f"  op: {_quoted(known.op)}\n"] if known else []
    return "".join([*lines, "  edges:\n", *(line for _, line in sorted(edges))])


def _group(group: ScaleGroup) -> str:
    ratio = "" if group.ratio_at_most is None else f"  ratio_at_most: {group.ratio_at_most!r}\n"
    return f"- tensors: {_listed(group.tensors, always=True)}\n  because: {_listed(group.because)}\n{ratio}"


def _listed(texts: tuple[str, ...], always: bool = False) -> str:
    return (
        _quoted(texts[0])
        if len(texts) == 1 and not always
        else f"[{', '.join(map(_quoted, texts))}]"
    )


def _quoted(text: str) -> str:
    """Return a text as YAML reads it back, in quotes where it must be."""
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    if text.isascii() and text.isprintable():
        return '"{}"'.format(text.replace("\\", r"\\").replace('"', r"\""))
    quoted: str = yaml.safe_dump(text, default_style='"', width=_WIDE).strip()
    return quoted


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError naming the file, the line and what is wrong in it."""
    return read_plan_file(path).plan


def read_plan_file(path: Path) -> PlanFile:
    """Return the plan in a file with the lines where its parts stand; raises PlanError naming the file, the line and what is wrong in it."""
    text = read_plan_bytes(path)
    try:
        content = parse_text_yaml(text)
        if not isinstance(content, LocatedMapping) or "qdq_plan" not in content:
            raise PlanError("it has no 'qdq_plan'")
        if content["qdq_plan"] != PLAN_VERSION:
            raise PlanError(
                f"its layout is version {content['qdq_plan']}, this qdq reads {PLAN_VERSION}"
            )
    except (yaml.YAMLError, RuleError, PlanError, ValueError, RecursionError) as error:
        raise PlanError(
            f"{path}: not a plan that qdq can read: {first_line(error)}; make one with 'qdq plan'"
        ) from error
    try:
        return _plan_file(path, content)
    except QdqError as error:
        raise PlanError(f"{path}:{error}") from error


def read_plan_bytes(path: Path) -> bytes:
    """Return the bytes of a plan or scales file; raises PlanError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _plan_file(path: Path, content: LocatedMapping) -> PlanFile:
    require_known_keys(
        content, (*_HEAD, "layers", "scale_groups"), (*_HEAD[:3], "targets", "layers")
    )
    reasons = content.get("reasons", LocatedMapping())
    if not isinstance(reasons, LocatedMapping) or not all(
        isinstance(why, str) for why in reasons.values()
    ):
        raise PlanError(f"{content.lines['reasons']}: 'reasons' must map rules to sentences")
    lines: dict[Edge, int] = {}
    nodes: dict[tuple[str, str], tuple[str, int]] = {}
    decisions: list[Placement | LeftFloat] = []
    for layer in _mappings(content, "layers", _LAYER, ("node", "edges")):
        key = (_word(layer, "graph", ""), _word(layer, "node"))
        nodes.setdefault(key, (_word(layer, "op", ""), layer.line))
        for entry in _mappings(layer, "edges", _EDGE, ("slot", "tensor")):
            decision = _decision(entry, *key, reasons)
            _refuse_repeated(decision.edge, entry.line, lines)
            lines[decision.edge] = entry.line
            decisions.append(decision)
    groups = list(_mappings(content, "scale_groups", _GROUP, ("tensors",)))
    plan = Plan(
        model=_word(content, "model"),
        digest=_word(content, "digest"),
        notes=_texts(content, "notes"),
        targets=tuple(_located(content, "targets", parse_target)),
        rule_sets=_texts(content, "rule_sets"),
        leave_float=_texts(content, "leave_float"),
        profiles=tuple(_located(content, "profiles", parse_profile))
        if "profiles" in content
        else (),
        placements=tuple(d for d in decisions if isinstance(d, Placement)),
        left_float=tuple(d for d in decisions if isinstance(d, LeftFloat)),
        scale_groups=tuple(map(_scale_group, groups)),
    )
    return PlanFile(path, plan, lines, nodes, tuple(group.line for group in groups))


def _refuse_repeated(edge: Edge, line: int, lines: dict[Edge, int]) -> None:
    """Raise PlanError where an earlier line decides the same slot of the same node."""
    if edge in lines:
        raise PlanError(f"{line}: the edge {edge} stands on line {lines[edge]} too; remove one")


def _decision(
    entry: LocatedMapping, graph: str, node: str, reasons: LocatedMapping
) -> Placement | LeftFloat:
    edge = Edge(graph, node, _whole(entry, "slot"), _word(entry, "tensor"))
    if ("quantize" in entry) == ("float" in entry):
        raise PlanError(
            f"{entry.line}: edge {edge} needs either 'quantize: FORMAT' or 'float: REASON'"
        )
    if "quantize" in entry:
        if "why" in entry:
            raise PlanError(f"{entry.lines['why']}: 'why' goes with 'float' only; remove it")
        name = read_choice(entry, "quantize", FORMATS)
        quantizer = Quantizer(
            name, FORMATS[name].dtype, _whole(entry, "axis") if "axis" in entry else None
        )
        return Placement(
            edge, quantizer, _texts(entry, "because") if "because" in entry else (BY_HAND,)
        )
    for key in ("axis", "because"):
        if key in entry:
            raise PlanError(
                f"{entry.lines[key]}: {key!r} goes with 'quantize' only; the rule of an edge in float stands behind 'float', the reason behind 'why'"
            )
    because = _word(entry, "float")
    return LeftFloat(edge, because, _word(entry, "why", reasons.get(because, "")))


def _scale_group(entry: LocatedMapping) -> ScaleGroup:
    because = _texts(entry, "because") if "because" in entry else (BY_HAND,)
    return ScaleGroup(
        _texts(entry, "tensors"), because, _ratio(entry) if "ratio_at_most" in entry else None
    )


def _ratio(entry: LocatedMapping) -> float:
    """Return the ratio as it was written, whole or not: the plan's key tells them apart."""
    text = _word(entry, "ratio_at_most")
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0.0:
        raise PlanError(
            f"{entry.lines['ratio_at_most']}: 'ratio_at_most' is {text!r}; write a number above 0"
        )
    return int(text) if text.isdecimal() else number


def _mappings(
    content: LocatedMapping, key: str, known: tuple[str, ...], required: tuple[str, ...]
) -> Iterator[LocatedMapping]:
    """Yield the mappings in the list behind a key, none where it is missing; raises RuleError, from its line on, for anything else."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise PlanError(f"{content.lines[key]}: {key!r} must be a list")
    for entry in entries:
        if not isinstance(entry, LocatedMapping):
            raise PlanError(
                f"{content.lines[key]}: {key!r} must hold mappings with {', '.join(required)}, not {entry!r}"
            )
        require_known_keys(entry, known, required)
        yield entry


def _word(content: LocatedMapping, key: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise PlanError(f"{content.lines[key]}: {key!r} must be one text")
    return value


def _whole(content: LocatedMapping, key: str) -> int:
    text = _word(content, key)
    if not text.isdecimal():
        raise PlanError(
            f"{content.lines[key]}: {key!r} is {text!r}; write a whole number from 0 on"
        )
    return int(text)


def _texts(content: LocatedMapping, key: str) -> tuple[str, ...]:
    value = content.get(key, [])
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in found):
        raise PlanError(f"{content.lines[key]}: {key!r} must be a text or a list of texts")
    return tuple(found)


def _located(content: LocatedMapping, key: str, read: Any) -> Iterator[Any]:
    for text in _texts(content, key):
        try:
            yield read(text)
        except QdqError as error:
            raise PlanError(f"{content.lines[key]}: {error}") from error
