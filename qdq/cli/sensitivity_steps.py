"""The commands to run after `qdq sensitivity`, which its text ends with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from qdq.cli.next_steps import format_steps, join_command, repeat_options
from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.reports.sensitivity_result import find_largest_fall
from qdq.sensitivity.partial_result import WARN_BELOW_DB

#: What patterns of names hold.
_PATTERN_MARKS = frozenset("*?[]")


def list_sensitivity_steps(ctx: click.Context, sensitivity: Sensitivity) -> list[str]:
    """Return lines with the commands that fit a sensitivity, with their purposes."""
    return format_steps(_find_steps(ctx, sensitivity))


def list_float_steps(ctx: click.Context, sensitivity: FloatSensitivity) -> list[str]:
    """Return lines with the commands that fit the noise of a 16-bit type."""
    return format_steps(_find_float_steps(ctx, sensitivity))


def _has_pattern(nodes: Sequence[str]) -> bool:
    """Whether `--leave-float` would read a name as a pattern of names."""
    return any(_PATTERN_MARKS & set(node) for node in nodes)


def _find_steps(ctx: click.Context, sensitivity: Sensitivity) -> Iterator[tuple[str, str]]:
    model, quantized = Path(ctx.params["model"]), ctx.params["quantized"]
    nodes = sensitivity.groups[0].nodes if sensitivity.groups else ()
    targets = [f"--target={target}" for target in ctx.params["targets"]]
    words = [str(model), "-o", str(model.with_suffix(".partial.onnx")), *repeat_options(ctx)]
    if sensitivity.int8_snr_db < WARN_BELOW_DB:
        command = join_command("quantize", *words, *targets, "--min-snr=20dB")
        yield command, "leaves as many layers in float as 20 dB takes"
    elif nodes and not _has_pattern(nodes):
        left = [f"--leave-float={node}" for node in nodes]
        command = join_command("quantize", *words, *targets, *left)
        yield command, f"the worst {sensitivity.by} in float"
    fall = find_largest_fall(sensitivity)
    if fall is not None and quantized:
        yield join_command("explain", str(quantized), fall.node), "its pairs"
    elif nodes and not quantized:
        yield join_command("explain", str(model), nodes[0], *targets), "the rules behind its pairs"


def _find_float_steps(
    ctx: click.Context, sensitivity: FloatSensitivity
) -> Iterator[tuple[str, str]]:
    model = Path(ctx.params["model"])
    output = str(model.with_suffix(f".{sensitivity.to}.onnx"))
    data = [option for option in repeat_options(ctx) if not option.startswith("--labels")]
    words = [str(model), "-o", output, f"--to={sensitivity.to}", *data]
    label = FLOAT_TYPES[sensitivity.to].label
    worst = next((node.node for node in sensitivity.nodes if not node.kept), "")
    if worst and sensitivity.cast_snr_db < WARN_BELOW_DB and not _has_pattern([worst]):
        yield join_command("cast", *words, f"--keep-fp32={worst}"), "keeps the worst node in FP32"
    else:
        yield join_command("cast", *words), f"the model in {label}"
