"""`qdq explain`: why an edge is quantized or not, and why a node stays in FP32."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.cli.float_options import float_type_option
from qdq.cli.messages import print_record
from qdq.cli.options import FILE, format_option
from qdq.cli.plan_options import PlanOptions, plan_options, read_rule_sets
from qdq.graph.loader import load
from qdq.pipeline.float_options import FloatOptions
from qdq.planning.explanation import Explanation, explain
from qdq.planning.planner import find_quantized_nodes, plan_source, require_float_model
from qdq.precision.float_explanation import (
    FloatExplanation,
    explain_floats,
    find_recorded_type,
)
from qdq.reports.sections import Section


class ExplainAnswer(msgspec.Struct, frozen=True):
    """The decisions about one node or tensor."""

    #: The node or tensor that was asked about.
    name: str
    explanations: tuple[Explanation, ...]
    #: The decisions about the float type of the nodes; absent where the float part stays FP32.
    floats: tuple[FloatExplanation, ...] | msgspec.UnsetType = msgspec.UNSET


@click.command("explain")
@click.argument("model", type=FILE)
@click.argument("name")
@plan_options
@float_type_option
@format_option
def command(model: Path, name: str, plan: PlanOptions, float_type: str | None, layout: str) -> None:
    """Print the decision, the rule, its reason and its source for each input of the node NAME.

    If NAME is a tensor, print them for each node that reads it. A node without a name is given by
    its position, as in '#17'. With --float, and for a model that 'qdq cast' wrote, print also why a
    node stays in FP32.

    \b
    Example:
      qdq explain resnet50.onnx /layer1/layer1.0/Add
      qdq explain bert.onnx /encoder/layer.0/LayerNorm/Pow --float fp16
    """
    answer = _explain(model, name, plan, float_type)
    sections = [_explanation_section(explanation) for explanation in answer.explanations]
    sections += [_float_section(explanation) for explanation in answer.floats or ()]
    if not sections:
        sections = [Section(name, ("no node reads it",))]
    print_record(layout, answer, sections)


def _explain(model: Path, name: str, plan: PlanOptions, float_type: str | None) -> ExplainAnswer:
    source = load(model)
    rules = read_rule_sets(plan.rule_sets)
    request = plan.parse(rules)
    chosen_type = FloatOptions(float_type).choose(request.targets)
    if float_type is None:
        chosen_type = find_recorded_type(source) or chosen_type
    floats: tuple[FloatExplanation, ...] = ()
    if chosen_type.is_short:
        floats = explain_floats(source, name, chosen_type, rules, request.targets)
    if floats and find_quantized_nodes(source):  # its pairs are not planned
        return ExplainAnswer(name, (), floats)
    require_float_model(source)
    request = msgspec.structs.replace(request, float_type=chosen_type)
    _, decisions = plan_source(source, request)
    return ExplainAnswer(name, explain(source, decisions, rules, name), floats or msgspec.UNSET)


def _explanation_section(explanation: Explanation) -> Section:
    decision = explanation.decision
    if explanation.rule:
        decision = f"{decision}: {explanation.rule}"
    return Section(str(explanation.edge), tuple(_list_lines(decision, explanation)))


def _float_section(explanation: FloatExplanation) -> Section:
    decision = f"compute in {explanation.decision.upper()}"
    if explanation.rule:
        decision = f"{decision}: {explanation.rule}"
    title = f"{explanation.operator} {explanation.node}"
    return Section(title, tuple(_list_lines(decision, explanation)))


def _list_lines(decision: str, explanation: Explanation | FloatExplanation) -> list[str]:
    lines = [decision]
    if explanation.says:
        lines.append(explanation.says)
    for label in ("because", "see", "evidence"):
        text = getattr(explanation, label)
        if text:
            lines.append(f"{label}: {text}")
    return lines
