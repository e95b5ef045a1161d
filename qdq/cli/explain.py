"""`qdq explain`: why an edge is quantized or not."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.messages import print_record
from qdq.cli.options import FILE, format_option
from qdq.cli.plan_options import PlanOptions, plan_options, read_rule_sets
from qdq.graph.loader import load
from qdq.planning.explanation import Explanation, explain
from qdq.planning.planner import plan_source, require_float_model
from qdq.reports.sections import Section


class ExplainAnswer(msgspec.Struct, frozen=True):
    """The decisions about one node or tensor."""

    #: The node or tensor that was asked about.
    name: str
    explanations: tuple[Explanation, ...]


@click.command("explain")
@click.argument("model", type=FILE)
@click.argument("name")
@plan_options
@format_option
def command(model: Path, name: str, plan: PlanOptions, layout: str) -> None:
    """Print the decision, the rule, its reason and its source for each input of the node NAME.

    If NAME is a tensor, print them for each node that reads it. A node without a name is given by
    its position, as in '#17'.

    \b
    Example:
      qdq explain resnet50.onnx /layer1/layer1.0/Add
    """
    source = load(model)
    rules = read_rule_sets(plan.rule_sets)
    request = plan.parse(rules)
    require_float_model(source)
    _, decisions = plan_source(source, request)
    answer = ExplainAnswer(name, explain(source, decisions, rules, name))
    sections = [_explanation_section(explanation) for explanation in answer.explanations]
    if not sections:
        sections = [Section(name, ("no node reads it",))]
    print_record(layout, answer, sections)


def _explanation_section(explanation: Explanation) -> Section:
    decision = explanation.decision
    if explanation.rule:
        decision = f"{decision}: {explanation.rule}"
    lines = [decision]
    if explanation.says:
        lines.append(explanation.says)
    for label in ("because", "see", "evidence"):
        text = getattr(explanation, label)
        if text:
            lines.append(f"{label}: {text}")
    return Section(str(explanation.edge), tuple(lines))
