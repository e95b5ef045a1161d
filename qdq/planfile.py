"""Plans and scales as files: a plan is YAML made to be read in review, scales are JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from qdq.calibration import Scales
from qdq.errors import PlanError, QdqError, first_line
from qdq.index import Edge
from qdq.planning import LeftFloat, Placement, Plan, ScaleGroup
from qdq.quantizer import FORMATS, Quantizer
from qdq.target import parse_target

#: Version of the plan file's layout.
PLAN_VERSION = 1
_WIDE = 1_000_000
#: libyaml's loader and dumper where PyYAML was built with it: plans of large models have many lines.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _PlacementEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    tensor: str
    into: str
    slot: int
    using: str
    because: list[str]
    axis: int | None = None
    graph: str = ""


class _FloatEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    tensor: str
    into: str
    slot: int
    because: str
    why: str
    graph: str = ""


class _GroupEntry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    tensors: list[str]
    because: list[str]
    ratio_at_most: float | None = None


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    qdq_plan: int
    model: str
    digest: str
    notes: list[str]
    targets: list[str]
    rule_sets: list[str]
    leave_float: list[str]
    scale_groups: list[_GroupEntry]
    quantize: list[_PlacementEntry]
    float: list[_FloatEntry]


def plan_yaml(plan: Plan) -> str:
    """Return a plan as YAML: one line for each edge, in graph order."""
    quantized = [
        _PlacementEntry(p.edge.tensor, p.edge.node, p.edge.slot, p.quantizer.name, list(p.because), p.quantizer.axis, p.edge.graph) for p in plan.placements
    ]
    left = [_FloatEntry(e.tensor, e.node, e.slot, item.because, item.why, e.graph) for item in plan.left_float for e in [item.edge]]
    head = {
        "qdq_plan": PLAN_VERSION,
        "model": plan.model,
        "digest": plan.digest,
        "notes": list(plan.notes),
        "targets": [str(t) for t in plan.targets],
        "rule_sets": list(plan.rule_sets),
        "leave_float": list(plan.leave_float),
    }
    parts = [yaml.safe_dump(head, sort_keys=False, width=_WIDE)]
    for key, entries in (
        ("scale_groups", [_GroupEntry(list(g.tensors), list(g.because), g.ratio_at_most) for g in plan.scale_groups]),
        ("quantize", quantized),
        ("float", left),
    ):
        parts.append(f"{key}:\n{''.join(map(_line, entries))}" if entries else f"{key}: []\n")
    return "".join(parts)


def _line(entry: Any) -> str:
    line = yaml.dump(msgspec.to_builtins(entry), Dumper=_DUMPER, default_flow_style=True, sort_keys=False, width=_WIDE)
    return f"- {line.strip()}\n"


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises PlanError naming the file and what is wrong in it."""
    text = _read(path)
    try:
        read = yaml.load(text, Loader=_LOADER)  # noqa: S506 one of the safe loaders
        content = msgspec.convert(read, _PlanFile)
        if content.qdq_plan != PLAN_VERSION:
            raise PlanError(f"its layout is version {content.qdq_plan}, this qdq reads {PLAN_VERSION}")
        return Plan(
            model=content.model,
            digest=content.digest,
            notes=tuple(content.notes),
            targets=tuple(parse_target(t) for t in content.targets),
            rule_sets=tuple(content.rule_sets),
            leave_float=tuple(content.leave_float),
            placements=tuple(map(_placement, content.quantize)),
            left_float=tuple(LeftFloat(Edge(e.graph, e.into, e.slot, e.tensor), e.because, e.why) for e in content.float),
            scale_groups=tuple(ScaleGroup(tuple(g.tensors), tuple(g.because), g.ratio_at_most) for g in content.scale_groups),
        )
    except (yaml.YAMLError, msgspec.ValidationError, QdqError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path}: not a plan that qdq can read: {first_line(error)}; make one with 'qdq plan'") from error


def read_scales(path: Path) -> Scales:
    """Return the scales in a file; raises PlanError naming the file and what is wrong in it."""
    try:
        return msgspec.json.decode(_read(path), type=Scales)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise PlanError(f"{path}: not a scales file that qdq can read: {first_line(error)}; make one with 'qdq calibrate'") from error


def scales_json(scales: Scales) -> bytes:
    """Return scales as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(scales), indent=1) + b"\n"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror}; check the path") from error


def _placement(entry: _PlacementEntry) -> Placement:
    if entry.using not in FORMATS:
        raise PlanError(f"{entry.tensor} -> {entry.into}[{entry.slot}]: unknown format {entry.using!r}; known are {', '.join(FORMATS)}")
    quantizer = Quantizer(entry.using, FORMATS[entry.using].dtype, entry.axis)
    return Placement(Edge(entry.graph, entry.into, entry.slot, entry.tensor), quantizer, tuple(entry.because))
