"""`qdq explain`: why an edge is quantized or not, and why a node stays in FP32."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from qdq.checking.checker import read_plan_request
from qdq.cli.float_options import extremes_option, float_type_option, read_extremes
from qdq.cli.messages import print_record
from qdq.cli.options import FILE, collect_options, format_option
from qdq.cli.plan_options import PlanOptions, plan_options, read_rule_sets
from qdq.errors import UsageError
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.pipeline.float_options import FloatOptions
from qdq.planning.explanation import Explanation, explain
from qdq.planning.planner import find_quantized_nodes, plan_index, plan_source
from qdq.precision.float_explanation import (
    FloatExplanation,
    explain_floats,
    find_recorded_type,
)
from qdq.quantized.model import QuantizedModel
from qdq.reports.sections import Section
from qdq.rules.rule_files import load_rules


class ExplainAnswer(msgspec.Struct, frozen=True):
    """The decisions about one node or tensor."""

    #: The node or tensor that was asked about.
    name: str
    explanations: tuple[Explanation, ...]
    #: The decisions about the float type of the nodes; absent where the float part stays FP32.
    floats: tuple[FloatExplanation, ...] | msgspec.UnsetType = msgspec.UNSET


class ExplainArguments(msgspec.Struct, frozen=True):
    """The arguments and options of the command."""

    model: Path
    name: str
    plan: PlanOptions
    float_type: str | None
    ranges: Path | None
    layout: str


@click.command("explain")
@click.argument("model", type=FILE)
@click.argument("name")
@plan_options
@float_type_option
@extremes_option
@format_option
@collect_options(ExplainArguments)
def command(options: ExplainArguments) -> None:
    """Print the decision, the rule, its reason and its source for each input of the node NAME.

    If NAME is a tensor, print them for each node that reads it. A node without a name is given by
    its position, as in '#17'. NAME may also be a glob, 'op:Softmax' or 'range:FIRST..LAST'. Of a
    quantized model the decisions about its float model are printed. With --float, and for a model
    that 'qdq cast' wrote, print also why a node stays in FP32.

    \b
    Example:
      qdq explain resnet50.onnx /layer1/layer1.0/Add
      qdq explain resnet50.int8.onnx 'op:*Pool'
      qdq explain bert.onnx /encoder/layer.0/LayerNorm/Pow --float fp16 --ranges bert.ranges
    """
    answer = _explain(options)
    sections = [_explanation_section(explanation) for explanation in answer.explanations]
    sections += [_float_section(explanation) for explanation in answer.floats or ()]
    if not sections:
        sections = [Section(options.name, ("no node reads it",))]
    print_record(options.layout, answer, sections)


def _explain(options: ExplainArguments) -> ExplainAnswer:
    source = load(options.model)
    name = options.name
    rules = read_rule_sets(options.plan.rule_sets)
    request = options.plan.parse(rules)
    chosen_type = FloatOptions(options.float_type).choose(request.targets)
    if options.float_type is None:
        chosen_type = find_recorded_type(source) or chosen_type
    if options.ranges is not None and not chosen_type.is_short:
        raise UsageError("--ranges: pairs are planned without ranges. Pass --float fp16 with it.")
    floats: tuple[FloatExplanation, ...] = ()
    if chosen_type.is_short:
        amax = read_extremes(options.ranges)
        floats = explain_floats(source, name, chosen_type, rules, request.targets, amax)
    if find_quantized_nodes(source):
        return ExplainAnswer(name, _explain_pairs(options, source), floats or msgspec.UNSET)
    request = msgspec.structs.replace(request, float_type=chosen_type)
    _, decisions = plan_source(source, request)
    return ExplainAnswer(name, explain(source, decisions, rules, name), floats or msgspec.UNSET)


def _explain_pairs(options: ExplainArguments, source: Source) -> tuple[Explanation, ...]:
    """Return the decisions of the rules about the float model of a quantized one.

    Rules and targets that are not passed are those that qdq wrote into the model.
    """
    quantized = QuantizedModel(source)
    request = read_plan_request(
        quantized,
        rules=load_rules(options.plan.rule_sets) if options.plan.rule_sets else None,
        targets=options.plan.targets,
        leave_float=options.plan.leave_float or None,
    )
    plan = plan_index(quantized.index, request)
    return explain(quantized.index.source, plan, request.rules, options.name)


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
    lines = _list_lines(decision, explanation)
    if explanation.largest is not None:
        lines.insert(1, f"largest value that it reads or writes: {explanation.largest:.6g}")
    return Section(title, tuple(lines))


def _list_lines(decision: str, explanation: Explanation | FloatExplanation) -> list[str]:
    lines = [decision]
    if explanation.says:
        lines.append(explanation.says)
    for label in ("because", "see", "evidence"):
        text = getattr(explanation, label)
        if text:
            lines.append(f"{label}: {text}")
    return lines
