"""Sections about a validation: accuracy, engines, and their layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from qdq.metrics.metric import MetricScores
from qdq.metrics.output_errors import OutputError
from qdq.reports.sections import Section, count_noun, join_names
from qdq.validation.accuracy import Accuracy
from qdq.validation.compared_tensors import MissingOutputs
from qdq.validation.engine_report import EngineReport, LayerVerdict
from qdq.validation.float_overflows import FloatOverflow
from qdq.validation.validator import Validation

_MEGABYTE = 1e6

_ERROR_HEADERS = ("output", "max error", "mean error", "cosine", "SNR dB", "top-1 agreement")

#: The cells of an engine that does not build.
_FAILED_CELLS = ("does not build", "-", "-", "-", "-", "-")


def validation_sections(validation: Validation) -> list[Section]:
    """Return accuracy, the engine table, and each engine's differences from the plan."""
    engines = validation.engines
    sections = []
    if validation.accuracy:
        sections.append(accuracy_section(validation.accuracy))
    if engines:
        sections.append(engine_section(engines))
    for engine in engines:
        if engine.outputs:
            title = f"{engine.target}: the engine's own outputs against float ONNX Runtime"
            sections.append(_errors_section(title, engine.outputs))
    sections += [fusion_rules_section(engine) for engine in engines if engine.fusion_rules]
    for engine in engines:
        differences = _differences_section(engine)
        if differences.lines:
            sections.append(differences)
    return sections


def accuracy_section(accuracy: Accuracy, against: str = "quantized") -> Section:
    """Return the error of each output."""
    lines = [f"{accuracy.samples} samples of {accuracy.data}"]
    for output in accuracy.outputs:
        if output.shape_mismatches:
            samples = count_noun(output.shape_mismatches, "sample")
            lines.append(f"{output.name}: not compared in {samples} with another shape than float")
    if accuracy.missing:
        lines += _missing_lines(accuracy.missing)
    if accuracy.overflows:
        lines.append(_overflows_line(accuracy.overflows))
    if isinstance(accuracy.metric, MetricScores):
        lines.append(_metric_line(accuracy.metric))
    title = f"Accuracy in ONNX Runtime, float against {against}"
    return _errors_section(title, accuracy.outputs, *lines)


def _overflows_line(overflows: tuple[FloatOverflow, ...]) -> str:
    """Return which FP16 tensors become infinite, and what mends it."""
    nodes = join_names([f"{item.operator} {item.node}" for item in overflows])
    return (
        f"{nodes}: the result is infinite in FP16, which the figures do not show, because "
        "ONNX Runtime computes in FP32. Cast with --ranges, or with --keep-fp32 of these nodes."
    )


def _metric_line(scores: MetricScores) -> str:
    """Return the scores of both models in one line."""
    basis = f" by {scores.basis}" if scores.basis else ""
    line = f"metric {scores.name}{basis}: {scores.quantized:.5g}"
    if scores.float_model is None or scores.drop is None:
        return line
    return f"{line}, float {scores.float_model:.5g}, drop {scores.drop:.4g}"


def _missing_lines(missing: MissingOutputs) -> Iterator[str]:
    """Yield which outputs are not compared, and what is compared instead."""
    outputs = ", ".join(missing.outputs)
    nodes = ", ".join(missing.nodes)
    yield f"{outputs}: not compared, ONNX Runtime lacks the operator of {nodes} (--ort-library)"
    if missing.compared:
        yield f"{', '.join(missing.compared)}: compared instead, the last tensors before it"


def engine_section(engines: Sequence[EngineReport]) -> Section:
    """Return the float engine and the quantized engine of each target in one table."""
    types = ", ".join(sorted({engine.types for engine in engines}))
    headers = (
        "target",
        "model",
        f"weighted in {types}",
        "stand-alone Q/DQ",
        "kernels",
        "reformats",
        "MB moved",
        "ms",
    )
    lines = sorted({f"{engine.compiler}, {engine.kind}" for engine in engines})
    rows: list[tuple[Any, ...]] = []
    for engine in engines:
        if engine.remark:
            lines.append(engine.remark)
        if engine.kind != "read":
            rows.append((engine.target, "float", *_float_cells(engine)))
        rows.append((engine.target, engine.types, *_quantized_cells(engine)))
    return Section("Engines", tuple(lines), headers, tuple(rows))


def fusion_rules_section(engine: EngineReport) -> Section:
    """Return the documented rules that a predicted engine's layers follow."""
    lines = []
    for rule in engine.fusion_rules:
        layers = count_noun(rule.layers, "layer")
        kinds = ", ".join(rule.kinds)
        lines.append(f"{layers} ({kinds}), {rule.rule}: {rule.description} [{rule.source}]")
    title = f"{engine.target}: predicted, not built; its layers follow these rules"
    return Section(title, tuple(lines))


def layers_section(engine: EngineReport) -> Section:
    """Return the engine layer of every weighted node."""
    headers = ["node", "operator", "multiplies", "promised", "engine layer"]
    if engine.fusion_rules:
        headers.append("rule")
    rows = []
    for layer in engine.layers:
        row = [layer.node, layer.op, _type_name(layer), layer.expected_type or "no", layer.engine]
        if engine.fusion_rules:
            row.append(layer.fusion_rule)
        rows.append(tuple(row))
    return Section(f"{engine.target}: weighted nodes", (), tuple(headers), tuple(rows))


def _type_name(layer: LayerVerdict) -> str:
    if layer.int8:
        return "INT8"
    if layer.int4:
        return "INT4"
    return "FP8" if layer.fp8 else "float"


def _errors_section(title: str, outputs: Sequence[OutputError], *lines: str) -> Section:
    rows = tuple(_error_row(output) for output in outputs)
    return Section(title, lines, _ERROR_HEADERS, rows)


def _error_row(output: OutputError) -> tuple[str, ...]:
    agreement = "-"
    if output.top1_agreement is not None:
        agreement = f"{output.top1_agreement:.1%}"
    return (
        output.name,
        f"{output.max_abs:.4g}",
        f"{output.mean_abs:.4g}",
        f"{output.cosine:.5f}",
        f"{output.snr_db:.2f}",
        agreement,
    )


def _float_cells(engine: EngineReport) -> tuple[Any, ...]:
    if engine.float_failure:
        return _FAILED_CELLS
    return (
        "-",
        "-",
        engine.float_kernels,
        _reformat_cell(engine, engine.float_reformats),
        f"{engine.float_bytes / _MEGABYTE:.2f}",
        _time_cell(engine.float_milliseconds),
    )


def _quantized_cells(engine: EngineReport) -> tuple[Any, ...]:
    if engine.failure:
        return _FAILED_CELLS
    count = sum(layer.int8 or layer.fp8 or layer.int4 for layer in engine.layers)
    return (
        f"{count} of {len(engine.layers)}",
        len(engine.standalone_qdq),
        engine.kernels,
        _reformat_cell(engine, engine.reformats),
        f"{engine.bytes / _MEGABYTE:.2f}",
        _time_cell(engine.milliseconds),
    )


def _reformat_cell(engine: EngineReport, count: int) -> int | str:
    """Return the number of reformats; TensorRT-RTX converts inside other kernels."""
    return "-" if engine.kind == "compiled" else count


def _time_cell(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3f}"


def _differences_section(engine: EngineReport) -> Section:
    title = f"{engine.target}: differences of the engine from the plan"
    if engine.kind == "predicted":
        title = f"{engine.target}: differences of the predicted engine from the plan"
    return Section(title, tuple(_difference_lines(engine)))


def _difference_lines(engine: EngineReport) -> Iterator[str]:
    for promise in engine.broken_promises:
        yield f"broken: {promise}"
    for layer in engine.layers:
        is_float = not layer.int8 and not layer.fp8 and not layer.int4
        if is_float and not layer.promised and layer.node not in engine.unmapped:
            yield f"in float, as planned: {layer.node}"
    for node in engine.unmapped:
        yield f"no layer of the engine names it: {node}"
    for name in engine.standalone_qdq:
        yield f"a separate kernel: {name}"
