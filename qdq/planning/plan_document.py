"""The content of a plan file: YAML mappings, each value as text, and the plan that they state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from qdq.errors import PlanError, QdqError
from qdq.files.strict_yaml import LocatedMapping, read_choice, require_known_keys
from qdq.graph.float_types import SHORT_TYPES
from qdq.graph.index import Edge
from qdq.graph.shape_profiles import parse_profile
from qdq.planning.decisions import (
    KeptFp32,
    LeftFloat,
    Placement,
    Plan,
    ScaleGroup,
    parse_sensitive_layer,
)
from qdq.quantizer import FORMATS, Quantizer
from qdq.target import parse_target

#: The rule of an edge that a reviewer quantized without naming one.
BY_HAND = "by-hand"

_KEYS = (
    "qdq_plan",
    "model",
    "digest",
    "notes",
    "targets",
    "rule_sets",
    "leave_float",
    "float_type",
    "sensitive",
    "profiles",
    "reasons",
    "layers",
    "scale_groups",
    "keep_fp32",
)
_REQUIRED_KEYS = ("qdq_plan", "model", "digest", "targets", "layers")
_LAYER_KEYS = ("node", "graph", "op", "edges")
_EDGE_KEYS = ("slot", "tensor", "quantize", "axis", "because", "float", "why")
_KEPT_KEYS = ("node", "because", "why")
_GROUP_KEYS = ("tensors", "because", "ratio_at_most")

_Item = TypeVar("_Item")


class PlanFile(msgspec.Struct, frozen=True):
    """A plan from a file, with the line of each of its parts."""

    path: Path
    plan: Plan
    #: The line of each edge, quantized or left in float.
    lines: dict[Edge, int]
    #: Operator and line of each node, by graph and label; "" where the file names no operator.
    nodes: dict[tuple[str, str], tuple[str, int]]
    #: The line of each scale group.
    groups: tuple[int, ...]
    #: The line of each node that stays in FP32.
    kept: tuple[int, ...] = ()

    def place(self, line: int) -> str:
        """Return a line of the file as ``file:line``."""
        return f"{self.path}:{line}"

    def edge_place(self, edge: Edge) -> str:
        """Return the line of an edge as ``file:line``."""
        return self.place(self.lines[edge])


class _Layers(msgspec.Struct):
    """The decisions under `layers`, with the lines of edges and nodes."""

    placements: list[Placement] = []
    left_float: list[LeftFloat] = []
    lines: dict[Edge, int] = {}
    nodes: dict[tuple[str, str], tuple[str, int]] = {}


def parse_plan_file(path: Path, content: LocatedMapping) -> PlanFile:
    """Return the plan that a file's content states; raises QdqError that begins with the line."""
    require_known_keys(content, _KEYS, _REQUIRED_KEYS)
    reasons = _read_reasons(content)
    layers = _parse_layers(content, reasons)
    groups = list(_read_mappings(content, "scale_groups", _GROUP_KEYS, ("tensors",)))
    kept = list(_read_mappings(content, "keep_fp32", _KEPT_KEYS, ("node",)))
    plan = Plan(
        model=_read_text(content, "model"),
        digest=_read_text(content, "digest"),
        notes=_read_texts(content, "notes"),
        targets=_parse_texts(content, "targets", parse_target),
        rule_sets=_read_texts(content, "rule_sets"),
        leave_float=_read_texts(content, "leave_float"),
        profiles=_parse_texts(content, "profiles", parse_profile),
        placements=tuple(layers.placements),
        left_float=tuple(layers.left_float),
        scale_groups=tuple(_parse_scale_group(group) for group in groups),
        sensitive=_parse_texts(content, "sensitive", parse_sensitive_layer) or msgspec.UNSET,
        float_type=_read_float_type(content),
        keep_fp32=tuple(_parse_kept(entry, reasons) for entry in kept) or msgspec.UNSET,
    )
    if plan.keep_fp32 and not plan.float_type:
        problem = "'keep_fp32' needs 'float_type': without it all nodes stay in FP32. Add it."
        raise _mistake(content, "keep_fp32", problem)
    group_lines = tuple(group.line for group in groups)
    kept_lines = tuple(entry.line for entry in kept)
    return PlanFile(path, plan, layers.lines, layers.nodes, group_lines, kept_lines)


def _read_float_type(content: LocatedMapping) -> str | msgspec.UnsetType:
    """Return the type of the float part; raises PlanError for one that has not 16 bits."""
    if "float_type" not in content:
        return msgspec.UNSET
    name: str = read_choice(content, "float_type", SHORT_TYPES)
    return name


def _parse_kept(entry: LocatedMapping, reasons: dict[str, str]) -> KeptFp32:
    rule = _read_text(entry, "because", BY_HAND)
    reason = _read_text(entry, "why", reasons.get(rule, ""))
    return KeptFp32(_read_text(entry, "node"), rule, reason)


def _read_reasons(content: LocatedMapping) -> dict[str, str]:
    """Return the sentence of each rule that leaves edges in float."""
    reasons: dict[str, str] = content.get("reasons", {})
    sentences = reasons.values() if isinstance(reasons, dict) else [None]
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise _mistake(content, "reasons", "'reasons' must map rules to sentences.")
    return reasons


def _parse_layers(content: LocatedMapping, reasons: dict[str, str]) -> _Layers:
    layers = _Layers()
    for layer in _read_mappings(content, "layers", _LAYER_KEYS, ("node", "edges")):
        graph = _read_text(layer, "graph", "")
        node = _read_text(layer, "node")
        operator = _read_text(layer, "op", "")
        layers.nodes.setdefault((graph, node), (operator, layer.line))
        for entry in _read_mappings(layer, "edges", _EDGE_KEYS, ("slot", "tensor")):
            _add_decision(layers, entry, graph, node, reasons)
    return layers


def _add_decision(
    layers: _Layers, entry: LocatedMapping, graph: str, node: str, reasons: dict[str, str]
) -> None:
    """Add the decision of an entry; raises PlanError for an edge that is decided already."""
    slot = _read_whole_number(entry, "slot")
    tensor = _read_text(entry, "tensor")
    edge = Edge(graph, node, slot, tensor)
    decision = _parse_decision(entry, edge, reasons)
    if edge in layers.lines:
        earlier_line = layers.lines[edge]
        raise PlanError(f"{entry.line}: edge {edge} is on line {earlier_line} too. Remove one.")
    layers.lines[edge] = entry.line
    if isinstance(decision, Placement):
        layers.placements.append(decision)
    else:
        layers.left_float.append(decision)


def _parse_decision(
    entry: LocatedMapping, edge: Edge, reasons: dict[str, str]
) -> Placement | LeftFloat:
    is_quantized = "quantize" in entry
    is_float = "float" in entry
    if is_quantized == is_float:
        raise PlanError(
            f"{entry.line}: edge {edge} needs either 'quantize: FORMAT' or 'float: REASON'."
        )
    if is_quantized:
        return _parse_placement(entry, edge)
    return _parse_left_float(entry, edge, reasons)


def _parse_placement(entry: LocatedMapping, edge: Edge) -> Placement:
    if "why" in entry:
        raise _mistake(entry, "why", "'why' is allowed with 'float' only. Remove it.")
    name = read_choice(entry, "quantize", FORMATS)
    form = FORMATS[name]
    axis = None
    if "axis" in entry:
        axis = _read_whole_number(entry, "axis")
    quantizer = Quantizer(name, form.dtype, axis)
    rules = _read_rules(entry)
    return Placement(edge, quantizer, rules)


def _parse_left_float(entry: LocatedMapping, edge: Edge, reasons: dict[str, str]) -> LeftFloat:
    for key in ("axis", "because"):
        if key in entry:
            problem = (
                f"{key!r} is allowed with 'quantize' only. "
                "Write the rule of an edge in float under 'float', and the reason under 'why'."
            )
            raise _mistake(entry, key, problem)
    rule = _read_text(entry, "float")
    reason = _read_text(entry, "why", reasons.get(rule, ""))
    return LeftFloat(edge, rule, reason)


def _parse_scale_group(entry: LocatedMapping) -> ScaleGroup:
    tensors = _read_texts(entry, "tensors")
    rules = _read_rules(entry)
    ratio = _read_ratio(entry)
    return ScaleGroup(tensors, rules, ratio)


def _read_rules(entry: LocatedMapping) -> tuple[str, ...]:
    if "because" not in entry:
        return (BY_HAND,)
    return _read_texts(entry, "because")


def _read_ratio(entry: LocatedMapping) -> float | None:
    """Return the ratio as int or float, as it is written: the plan's key distinguishes them."""
    if "ratio_at_most" not in entry:
        return None
    text = _read_text(entry, "ratio_at_most")
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0.0:
        problem = f"'ratio_at_most' is {text!r}. Write a number above 0."
        raise _mistake(entry, "ratio_at_most", problem)
    if text.isdecimal():
        return int(text)
    return number


def _read_mappings(
    content: LocatedMapping, key: str, known: tuple[str, ...], required: tuple[str, ...]
) -> Iterator[LocatedMapping]:
    """Yield the mappings in the list of a key; none where the key is missing.

    Raises QdqError, from its line on, for anything else.
    """
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise _mistake(content, key, f"{key!r} must be a list.")
    for entry in entries:
        if not isinstance(entry, LocatedMapping):
            keys = ", ".join(required)
            problem = f"{key!r} must hold mappings with {keys}, not {entry!r}."
            raise _mistake(content, key, problem)
        require_known_keys(entry, known, required)
        yield entry


def _read_text(content: LocatedMapping, key: str, default: str | None = None) -> str:
    value = content.get(key, default)
    if not isinstance(value, str):
        raise _mistake(content, key, f"{key!r} must be a single text.")
    return value


def _read_whole_number(content: LocatedMapping, key: str) -> int:
    text = _read_text(content, key)
    if not text.isdecimal():
        problem = f"{key!r} is {text!r}. Write a whole number, at least 0."
        raise _mistake(content, key, problem)
    return int(text)


def _read_texts(content: LocatedMapping, key: str) -> tuple[str, ...]:
    """Return the text or texts of a key; none where the key is missing."""
    texts = content.get(key, [])
    if not isinstance(texts, list):
        texts = [texts]
    if not all(isinstance(text, str) for text in texts):
        raise _mistake(content, key, f"{key!r} must be a text or a list of texts.")
    return tuple(texts)


def _parse_texts(
    content: LocatedMapping, key: str, parse: Callable[[str], _Item]
) -> tuple[_Item, ...]:
    """Return the parsed texts of a key; raises PlanError, from its line on."""
    texts = _read_texts(content, key)
    try:
        return tuple(parse(text) for text in texts)
    except QdqError as error:
        raise _mistake(content, key, str(error)) from error


def _mistake(content: LocatedMapping, key: str, problem: str) -> PlanError:
    """Return the error about the value of a key; it begins with the key's line."""
    line = content.lines[key]
    return PlanError(f"{line}: {problem}")
