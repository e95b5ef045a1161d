"""The commands to run after `qdq validate`, which its text ends with."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from qdq.cli.next_steps import find_smallest, format_steps, join_command, repeat_options
from qdq.cli.options import is_on_command_line
from qdq.data.feeds import NOISE
from qdq.reports.report import Report
from qdq.reports.result_section import find_ratio
from qdq.sensitivity.partial_result import WARN_BELOW_DB
from qdq.target import parse_target
from qdq.validation.engine_report import EngineReport
from qdq.validation.validator import Validation

#: The first words of the commands that build an engine, by the target's backend.
_BUILDERS = {"rtx": ("tensorrt_rtx",), "trt": ("trtexec", "--stronglyTyped")}

#: The options that choose samples, and those of the output, by parameter.
_DATA_OPTIONS = frozenset(("data", "images", "preprocess", "labels", "samples", "seed"))
_REPORT_OPTIONS = frozenset(("report", "force", "is_opened", "layout"))

#: What stands for the user's samples in a command.
_SAMPLES = "SAMPLES"


def list_validation_steps(ctx: click.Context, report: Report) -> list[str]:
    """Return lines with the commands that fit a validation, at most three, with their purposes."""
    if report.validation is None:
        return []
    return format_steps(_find_steps(ctx, report, report.validation))


def _find_steps(
    ctx: click.Context, report: Report, validation: Validation
) -> Iterator[tuple[str, str]]:
    """Yield commands with their purposes, the most urgent first."""
    model, quantized = str(ctx.params["model"]), str(ctx.params["quantized"])
    data = list(repeat_options(ctx))
    engines = validation.engines
    yield from _mend_refused(model, quantized, data, engines)
    is_known = validation.accuracy is not None and validation.accuracy.data != NOISE
    is_bad = _is_inaccurate(report, engines)
    if is_bad and is_known:
        command = join_command("sensitivity", model, quantized, *data)
        yield command, "which layers lose accuracy"
    yield from find_smallest(report)
    node = _find_broken(engines) or _find_float_layer(engines)
    if node:
        yield join_command("explain", quantized, node), "why a layer runs in float"
    if not is_known:
        yield _repeat_with_samples(ctx, model, quantized)
    elif not is_bad:
        yield from _build_engine(quantized, report)
    if not engines:
        yield join_command("check", quantized), "whether TensorRT reads the pairs as planned"
    yield from _write_page(ctx, model, quantized)


def _repeat_with_samples(ctx: click.Context, model: str, quantized: str) -> tuple[str, str]:
    others = _repeat_call(ctx, _DATA_OPTIONS | _REPORT_OPTIONS)
    command = join_command("validate", model, quantized, f"--data={_SAMPLES}", *others)
    return command, f"the accuracy; {_SAMPLES} are inputs of yours"


def _write_page(ctx: click.Context, model: str, quantized: str) -> Iterator[tuple[str, str]]:
    """Yield the call with a report, where it had none."""
    if not ctx.params["report"]:
        page = Path(quantized).with_suffix(".html")
        words = (*_repeat_call(ctx, _REPORT_OPTIONS), f"--report={page}")
        command = join_command("validate", model, quantized, *words)
        yield command, "a page to look at and to decide by"


def _repeat_call(ctx: click.Context, skipped: frozenset[str]) -> Iterator[str]:
    """Yield the options of the call that stand on the command line, but for some."""
    for parameter in ctx.command.params:
        name = parameter.name or ""
        if not isinstance(parameter, click.Option) or name in skipped:
            continue
        if not is_on_command_line(ctx, name):
            continue
        value = ctx.params[name]
        option = max(parameter.opts, key=len)
        if parameter.is_flag:
            yield option
            continue
        for item in value if parameter.multiple else (value,):
            yield f"{option}={item}"


def _mend_refused(
    model: str, quantized: str, data: Sequence[str], engines: Sequence[EngineReport]
) -> Iterator[tuple[str, str]]:
    """Yield what to do about an engine that does not build."""
    for engine in engines:
        if not engine.failure:
            continue
        if engine.kind == "compiled" and data:
            output = Path(quantized).with_suffix(".builds.onnx")
            options = (*data, f"--target={engine.target}", "--until-it-builds")
            command = join_command("quantize", model, "-o", str(output), *options)
            yield command, "leaves in float what the compiler refuses"
        else:
            yield join_command("check", quantized), "what TensorRT refuses or misreads"
        return


def _is_inaccurate(report: Report, engines: Sequence[EngineReport]) -> bool:
    """Whether the ratio is low, or a threshold is missed; other misses are about engines."""
    of_engines = sum(len(engine.broken_promises) + bool(engine.failure) for engine in engines)
    ratio = find_ratio(report)
    is_low = ratio is not None and (math.isnan(ratio) or ratio < WARN_BELOW_DB)
    return is_low or len(report.misses) > of_engines


def _find_broken(engines: Sequence[EngineReport]) -> str:
    """Return a layer that an engine runs in float in spite of its pairs, "" without one."""
    for engine in engines:
        for promise in engine.broken_promises:
            return promise.node
    return ""


def _find_float_layer(engines: Sequence[EngineReport]) -> str:
    """Return a weighted layer without pairs, "" where all have them or none has."""
    for engine in engines:
        if not any(layer.promised for layer in engine.layers):
            continue
        for layer in engine.layers:
            if not layer.promised and layer.node not in engine.unmapped:
                return layer.node
    return ""


def _build_engine(quantized: str, report: Report) -> Iterator[tuple[str, str]]:
    """Yield the command that builds the engine of the first target whose best file this is."""
    larger = {choice.target for choice in report.file_choices or () if choice.is_larger}
    for engine in report.validation.engines if report.validation else ():
        if engine.failure or engine.kind == "read" or engine.target in larger:
            continue
        builder = _BUILDERS[parse_target(engine.target).backend]
        plan = Path(quantized).with_suffix(".plan")
        words = (*builder, f"--onnx={quantized}", f"--saveEngine={plan}")
        yield shlex.join(words), f"builds the engine for {engine.target}"
        return
