"""The commands to run after `qdq quantize`, which its text ends with, and how such lines look."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import click

from qdq.cli.messages import print_sections
from qdq.cli.options import is_on_command_line
from qdq.graph.bodies import node_labels
from qdq.graph.operators import WEIGHTED
from qdq.pipeline.quantize_model import Quantized
from qdq.reports.report import Report, findings_section
from qdq.reports.result_section import is_inaccurate
from qdq.reports.sections import Section, count_noun
from qdq.sensitivity.partial_result import PartialResult

#: How many commands are shown.
_MOST_STEPS = 3

#: The options that later commands need again, by parameter.
_DATA_OPTIONS = {
    "data": "--data",
    "images": "--images",
    "preprocess": "--preprocess",
    "labels": "--labels",
}

#: What stands in a command for words that its user fills in.
_GAP = "..."


def list_next_steps(
    ctx: click.Context, output: Path, result: Quantized, report: Report
) -> list[str]:
    """Return lines with the commands that fit a result, at most three, each with its purpose."""
    model = str(ctx.params["model"])
    return format_steps(_find_steps(ctx, model, str(output), result, report))


def format_steps(steps: Iterable[tuple[str, str]]) -> list[str]:
    """Return a line for each of the first commands, with its purpose."""
    return [f"next: {command}  # {purpose}" for command, purpose in islice(steps, _MOST_STEPS)]


def join_command(command: str, *words: str) -> str:
    """Return a command of qdq as a shell reads it."""
    return shlex.join(("qdq", command, *words))


def repeat_options(ctx: click.Context) -> Iterator[str]:
    """Yield the options of the data; those of the project file apply to later commands too."""
    for name, option in _DATA_OPTIONS.items():
        if ctx.params.get(name) is not None and is_on_command_line(ctx, name):
            yield f"{option}={ctx.params[name]}"


def find_smallest(report: Report) -> Iterator[tuple[str, str]]:
    """Yield the command for the file with the smallest engine, where it is another one."""
    for choice in report.file_choices or ():
        smallest = choice.find(choice.smallest)
        if smallest is not None and smallest.command and _GAP not in smallest.command:
            yield smallest.command, f"the smallest engine for {choice.target}"
            return


def print_wrong(report: Report) -> None:
    """Print the findings and the missed goals of a report, if there are any."""
    sections: list[Section] = []
    if report.findings:
        sections.append(findings_section(report.findings))
    if report.misses:
        sections.append(Section("Missed", report.misses))
    if sections:
        print_sections(sections)


def _find_steps(
    ctx: click.Context, model: str, output: str, result: Quantized, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield commands with their purposes, the most urgent first."""
    data = list(repeat_options(ctx))
    targets = [f"--target={target}" for target in result.plan.targets]
    if result.findings:
        count = count_noun(len(result.findings), "finding")
        yield join_command("check", output), f"what {count} cost, and the fixes"
    yield from find_smallest(report)
    if result.existing:
        yield join_command("diff", model, output), "the pairs that changed"
        return
    if is_inaccurate(report) and data:
        yield join_command("sensitivity", model, *data, *targets), "which layers lose accuracy"
    if report.validation is None and (data or result.scales.samples):
        yield join_command("validate", model, output, *data, *targets), "accuracy and engines"
    node = _find_float_node(result)
    if node:
        yield join_command("explain", output, node), "why a layer stays in float"


def _find_float_node(result: Quantized) -> str:
    """Return a weighted layer that a search or a rule left in float, "" where there is none."""
    if isinstance(result.partial, PartialResult) and result.partial.sensitive:
        return result.partial.sensitive[0].node
    graph = result.source.model.graph
    operators = {
        label: node.op_type for label, node in zip(node_labels(graph), graph.node, strict=True)
    }
    for item in result.plan.left_float:
        if operators.get(item.edge.node) in WEIGHTED and not item.edge.graph:
            return item.edge.node
    return ""
