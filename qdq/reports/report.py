"""Records as text for people, Markdown, and stable JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from qdq.calibration.scales import Scales
from qdq.calibration.shared_scales import SharedRange
from qdq.checking.finding import Finding
from qdq.data.feeds import NOISE
from qdq.errors import UsageError
from qdq.pipeline.bisection import BisectionResult
from qdq.pipeline.requantize import Existing
from qdq.planning.decisions import BODY, FUNCTION, Plan, left_float_lines, placement_lines
from qdq.ranges.model_ranges import OWN_RANGES_NAME
from qdq.ranges.tensor_ranges import Ranges
from qdq.reports.changes import existing_sections
from qdq.reports.sections import Section, sections_text
from qdq.target import DEFAULT_TARGET
from qdq.validation.accuracy import Accuracy, OutputError
from qdq.validation.engine_report import EngineReport
from qdq.validation.validator import Validation

#: Version of the JSON layout, raised when a field changes meaning or goes away.
JSON_VERSION = 1
SUFFIXES = (".json", ".md", ".txt")
_MEGA = 1e6

#: How many names a line holds, and how many tensors that gave up range are shown.
_NAMES, _MOST = 12, 5


class Report(msgspec.Struct, frozen=True):
    """What was decided, measured and validated; parts that did not happen are None."""

    plan: Plan | None = None
    scales: Scales | None = None
    findings: tuple[Finding, ...] | None = None
    validation: Validation | None = None
    #: One sentence for each promise broken and threshold missed.
    misses: tuple[str, ...] = ()
    #: What was left in float so that it builds; absent where that was not asked for.
    build_search: BisectionResult | msgspec.UnsetType = msgspec.UNSET
    #: What became of the quantization that the model had; absent for a float model.
    existing: Existing | msgspec.UnsetType = msgspec.UNSET
    #: How far that model, as it was given, is from its float model; absent unless it was run.
    original_accuracy: Accuracy | msgspec.UnsetType = msgspec.UNSET


def check_report_path(path: Path) -> None:
    """Raise UsageError unless the path's suffix names a format that reports come in."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: reports end in {', '.join(SUFFIXES)}; the suffix chooses the format"
        )


def render(report: Report, suffix: str) -> str:
    """Return a report as ``.json``, ``.md`` or ``.txt``."""
    if suffix == ".json":
        return to_json(report)
    parts = report_sections(report) + [
        layers_section(e)
        for e in (report.validation.engines if report.validation else ())
        if e.layers
    ]
    return sections_text(parts, markdown=suffix == ".md")


def to_json(record: Any) -> str:
    """Return a record as indented JSON with the layout's version in front."""
    content = {"qdq_json": JSON_VERSION, **to_plain(record)}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"


def to_plain(record: Any) -> dict[str, Any]:
    """Return a record as dicts, lists, texts and numbers; NaN and infinity become null."""
    content: dict[str, Any] = msgspec.to_builtins(record, str_keys=True)
    return content


def report_sections(report: Report) -> list[Section]:
    """Return a report's sections, in the order of the stages."""
    parts: list[Section] = []
    if report.plan:
        parts.append(plan_summary(report.plan))
    if isinstance(report.existing, Existing):
        parts += existing_sections(report.existing)
    if isinstance(report.build_search, BisectionResult):
        parts.append(building_section(report.build_search))
    if report.scales:
        parts.append(scales_summary(report.scales))
    if report.findings is not None:
        parts.append(findings_section(report.findings))
    if isinstance(report.original_accuracy, Accuracy):
        parts.append(accuracy_section(report.original_accuracy, "the model as it was given"))
    if report.validation:
        parts += validation_sections(report.validation)
    if report.misses:
        parts.append(Section("Missed", report.misses))
    return parts


def plan_summary(plan: Plan) -> Section:
    """Return how many edges each rule decided."""
    placed = Counter(rule for p in plan.placements for rule in p.because)
    left = Counter(item.because for item in plan.left_float)
    rows = [(rule, "quantize", count) for rule, count in sorted(placed.items())]
    rows += [(rule, "leave in float", count) for rule, count in sorted(left.items())]
    targets = ", ".join(map(str, plan.targets))
    scope = (
        " (no --target given: TensorRT on SM 8.0 and up)"
        if plan.targets == (DEFAULT_TARGET,)
        else ""
    )
    lines = [
        f"{plan.model}: {len(plan.placements)} edges quantized, for {targets}{scope}, rules {', '.join(plan.rule_sets)}",
        *plan.notes,
    ]
    if plan.scale_groups:
        count = len(plan.scale_groups)
        lines.append(
            f"{count} {_plural('group', count)} of tensors share{'s' if count == 1 else ''} a scale"
        )
    lines += [
        f"left in float: {item.edge}: {item.reason}"
        for item in plan.left_float
        if item.because in (BODY, FUNCTION)
    ]
    return Section("Plan", tuple(lines), ("rule", "decision", "edges"), tuple(rows))


def building_section(found: BisectionResult) -> Section:
    """Return what the compiler refused, in its words, and what was left in float for it."""
    lines = [
        f"left in float: {', '.join(guilt.groups)}: {guilt.message}" for guilt in found.refused
    ]
    return Section("Building", (*lines, f"it builds; {found.builds} built to find out"))


def plan_sections(plan: Plan) -> list[Section]:
    """Return a plan in full."""
    return [
        plan_summary(plan),
        Section("Quantized", tuple(placement_lines(plan))),
        Section("Left in float", tuple(left_float_lines(plan))),
    ]


def scales_summary(scales: Scales) -> Section:
    """Return what the scales were computed from."""
    source = (
        f"{scales.method} over {scales.samples} samples{_of_batch(scales.batch)} of {scales.data}"
        if scales.data
        else f"{scales.method}, no data was run"
    )
    lines = [f"{source}: {len(scales.by_pair)} pairs"]
    if scales.data == NOISE:
        lines.append("calibrated on noise: the scales mean nothing for real inputs")
    lines += [f"{tensor} held only zeros; its scale is a placeholder" for tensor in scales.dead]
    lines += [
        f"{far.tensor} reaches {far.amax:.3g} and is clipped at {far.clipped_at:.3g}: its outliers are {far.amax / far.clipped_at:.0f} times its range"
        for far in scales.outliers
    ]
    return Section("Calibration", (*lines, *given_lines(scales), *shared_lines(scales.shared)))


def given_lines(scales: Scales) -> list[str]:
    """Return what became of ranges that came from elsewhere, and which of them their scale group widened."""
    given = scales.given_ranges
    if given is None:
        return []
    lines = [f"{given.name} gives the ranges of {len(given.tensors)} tensors"]
    lines += _listed(
        "take the range of a tensor that holds all of their values",
        [f"{t.tensor} from {t.source_tensor}" for t in given.tensors if t.source_tensor],
    )
    lines += _listed(
        f"not in {given.name}, and {'calibrated' if scales.data else 'constant: their largest value'}",
        given.missing,
    )
    lines += _listed(f"in {given.name}, but not in the graph", given.unknown)
    if not given.name.endswith(OWN_RANGES_NAME):  # whose changes are reported pair by pair
        lines += _listed(f"in {given.name}, but not quantized by the plan", given.unplanned)
    return lines + [
        f"{s.tensor} was given {s.own_amax:.4g}, and has {s.amax:.4g} as its scale group does"
        for s in widened_ranges(scales)
    ]


def widened_ranges(scales: Scales) -> list[SharedRange]:
    """Return the tensors whose range was given, for them by name, and that their scale group gave a larger one."""
    named = (
        {taken.tensor for taken in scales.given_ranges.tensors if not taken.source_tensor}
        if scales.given_ranges
        else set()
    )
    return [
        shared
        for shared in scales.shared
        if shared.tensor in named and shared.own_amax < shared.amax
    ]


def shared_lines(shared: Sequence[SharedRange]) -> list[str]:
    """Return how many tensors have their scale group's range, and which of them gave up most for it."""
    lost = sorted((s for s in shared if s.bits > 0.0), key=lambda s: -s.bits)
    if not shared:
        return []
    head = f"{len(shared)} tensors have the range of their scale group, {len(lost) or 'none'} of them a larger one than their own"
    most = [
        f"{s.tensor}: {s.own_amax:.4g} of its own, {s.amax:.4g} shared, {s.amax / s.own_amax:.3g} times ({s.bits:.2g} bits)"
        for s in lost[:_MOST]
    ]
    return [head + ("; these gave up most" if len(lost) > _MOST else ""), *most]


def _listed(what: str, names: Sequence[str]) -> list[str]:
    more = (
        f" and {len(names) - _NAMES} more (all of them in a report that ends in .json)"
        if len(names) > _NAMES
        else ""
    )
    return [f"{len(names)} {what}: {', '.join(names[:_NAMES])}{more}"] if names else []


def ranges_summary(ranges: Ranges) -> Section:
    """Return what was observed."""
    some = f", parts {', '.join(map(str, ranges.parts))} of {ranges.of}" if ranges.missing else ""
    return Section(
        "Ranges",
        (
            f"{len(ranges.by_tensor)} tensors over {ranges.samples} samples{_of_batch(ranges.batch)} of {ranges.data}{some}",
        ),
    )


def _of_batch(batch: str) -> str:
    return f" of batch {batch}" if batch not in ("", "1") else ""


def findings_section(findings: Sequence[Finding]) -> Section:
    """Return findings one a line."""
    return Section("Check", tuple(map(str, findings)) or ("nothing found",))


def validation_sections(validation: Validation) -> list[Section]:
    """Return accuracy, the engine table, and what each engine did not keep."""
    parts = [accuracy_section(validation.accuracy)] if validation.accuracy else []
    if validation.engines:
        parts.append(engine_section(validation.engines))
    parts += [
        _errors_section(
            f"{e.target}: the engine's own outputs against float ONNX Runtime", e.outputs
        )
        for e in validation.engines
        if e.outputs
    ]
    parts += [rules_section(e) for e in validation.engines if e.fusion_rules]
    others = [_promises(e) for e in validation.engines]
    return parts + [part for part in others if part.lines]


def accuracy_section(accuracy: Accuracy, against: str = "quantized") -> Section:
    """Return the error of each output."""
    lines = [f"{accuracy.samples} samples of {accuracy.data}"]
    lines += [
        f"{o.name} has another shape than in float for {o.shape_mismatches} of them, which are not compared"
        for o in accuracy.outputs
        if o.shape_mismatches
    ]
    return _errors_section(
        f"Accuracy in ONNX Runtime, float against {against}", accuracy.outputs, *lines
    )


def _errors_section(title: str, outputs: Sequence[OutputError], *lines: str) -> Section:
    rows = tuple(
        (
            o.name,
            f"{o.max_abs:.4g}",
            f"{o.mean_abs:.4g}",
            f"{o.cosine:.5f}",
            f"{o.snr_db:.2f}",
            "-" if o.top1_agreement is None else f"{o.top1_agreement:.1%}",
        )
        for o in outputs
    )
    headers = ("output", "max error", "mean error", "cosine", "SNR dB", "top-1 agreement")
    return Section(title, lines, headers, rows)


def engine_section(engines: Sequence[EngineReport]) -> Section:
    """Return the float and the INT8 engine of each target in one table."""
    rows: list[tuple[Any, ...]] = []
    for e in engines:
        int8 = f"{sum(v.int8 or v.fp8 for v in e.layers)} of {len(e.layers)}"
        if e.kind != "read":
            rows.append(
                (
                    e.target,
                    "float",
                    *_engine_cells(
                        e.float_failure,
                        "-",
                        "-",
                        e.float_kernels,
                        _reformats(e, e.float_reformats),
                        e.float_bytes,
                        e.float_milliseconds,
                    ),
                )
            )
        rows.append(
            (
                e.target,
                e.types,
                *_engine_cells(
                    e.failure,
                    int8,
                    len(e.standalone_qdq),
                    e.kernels,
                    _reformats(e, e.reformats),
                    e.bytes,
                    e.milliseconds,
                ),
            )
        )
    weighted = f"weighted in {', '.join(sorted({e.types for e in engines}))}"
    headers = (
        "target",
        "model",
        weighted,
        "stand-alone Q/DQ",
        "kernels",
        "reformats",
        "MB moved",
        "ms",
    )
    compilers = sorted({f"{e.compiler}, {e.kind}" for e in engines})
    return Section(
        "Engines",
        tuple(compilers) + tuple(e.remark for e in engines if e.remark),
        headers,
        tuple(rows),
    )


def _reformats(engine: EngineReport, count: int) -> Any:
    """Return how many reformats an engine has; TensorRT-RTX converts inside other kernels."""
    return "-" if engine.kind == "compiled" else count


def _engine_cells(failure: str, *cells: Any) -> tuple[Any, ...]:
    *counts, moved, milliseconds = cells
    if failure:
        return ("does not build", *("-" for _ in cells[1:]))
    return (*counts, f"{moved / _MEGA:.2f}", "-" if milliseconds is None else f"{milliseconds:.3f}")


def rules_section(engine: EngineReport) -> Section:
    """Return the documented rules that a predicted engine's layers follow."""
    lines = tuple(
        f"{r.layers} {_plural('layer', r.layers)} ({', '.join(r.kinds)}), {r.rule}: {r.description} [{r.source}]"
        for r in engine.fusion_rules
    )
    return Section(f"{engine.target}: predicted, not built; its layers follow", lines)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"


def layers_section(engine: EngineReport) -> Section:
    """Return what an engine made of every weighted node."""
    follows = bool(engine.fusion_rules)
    rows = tuple(
        (
            v.node,
            v.op,
            "INT8" if v.int8 else "FP8" if v.fp8 else "float",
            v.expected_type or "no",
            v.engine,
            *([v.fusion_rule] if follows else []),
        )
        for v in engine.layers
    )
    headers = (
        "node",
        "operator",
        "multiplies",
        "promised",
        "engine layer",
        *(["follows"] if follows else []),
    )
    return Section(f"{engine.target}: weighted nodes", (), headers, rows)


def _promises(engine: EngineReport) -> Section:
    lines = [f"broken: {b}" for b in engine.broken_promises]
    lines += [
        f"in float, as planned: {v.node}"
        for v in engine.layers
        if not v.int8 and not v.fp8 and not v.promised and v.node not in engine.unmapped
    ]
    lines += [f"no layer of the engine names it: {node}" for node in engine.unmapped]
    lines += [f"a kernel of its own: {name}" for name in engine.standalone_qdq]
    did = (
        "what the predicted engine does otherwise"
        if engine.kind == "predicted"
        else "what the engine did otherwise"
    )
    return Section(f"{engine.target}: {did}", tuple(lines))
