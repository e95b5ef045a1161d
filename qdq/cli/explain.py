"""`qdq explain`: why an edge is quantized or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from qdq.cli.options import (
    FILE,
    format_option,
    leave_float_option,
    profiles_of,
    rules_of,
    rules_option,
    shapes_option,
    show,
    target_option,
    targets_of,
)
from qdq.graph.loader import load
from qdq.planning.explanation import Explanation, explain
from qdq.planning.planner import plan
from qdq.reports.sections import Section


class Answer(msgspec.Struct, frozen=True):
    """What `--format json` prints."""

    name: str
    explanations: tuple[Explanation, ...]


@click.command("explain")
@click.argument("model", type=FILE)
@click.argument("name")
@rules_option
@target_option
@leave_float_option
@shapes_option
@format_option
def command(model: Path, name: str, **given: Any) -> None:
    """Print the decision, the rule, its reason and its source for each input of the node NAME.

    If NAME is a tensor, print them for each node that reads it. A node without a name is
    written by its position, as in '#17'.

    \b
    Example:
      qdq explain resnet50.onnx /layer1/layer1.0/Add
    """
    source, rules = load(model), rules_of(given["rule_sets"])
    made = plan(
        source, rules=rules, targets=targets_of(given["targets"]), leave_float=given["leave_float"], allow_unmatched=given["allow_unmatched"],
        profiles=profiles_of(given["shapes"]),
    )  # fmt: skip
    answer = Answer(name, explain(source, made, rules, name))
    parts = [_section(e) for e in answer.explanations] or [Section(name, ("nothing reads it",))]
    show(given["layout"], answer, parts)


def _section(e: Explanation) -> Section:
    lines = [f"{e.decision}: {e.rule}" if e.rule else e.decision, e.says]
    lines += [f"because: {e.because}"] if e.because else []
    lines += [f"see: {e.see}"] if e.see else []
    lines += [f"evidence: {e.evidence}"] if e.evidence else []
    return Section(str(e.edge), tuple(line for line in lines if line))
