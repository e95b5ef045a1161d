"""What the records of commands say about single nodes."""

from __future__ import annotations

from collections.abc import Iterable

from qdq.graph.bodies import qualified_name
from qdq.graph.float_types import FLOAT_TYPES
from qdq.pipeline.float_sensitivity import FloatSensitivity
from qdq.pipeline.sensitivity_analysis import Sensitivity
from qdq.quantized.pair_diff import PairDiff
from qdq.reports.changes import change_line
from qdq.reports.model_graphs import NodeFacts
from qdq.reports.page_findings import note_findings
from qdq.reports.partial_sections import format_decibels
from qdq.reports.report import Report
from qdq.sensitivity.partial_result import PartialResult
from qdq.validation.engine_report import EngineReport

_ALONE = "with the node alone in INT8"


def collect_report_facts(report: Report) -> NodeFacts:
    """Return the findings and the measurements of a quantization or a validation at nodes."""
    notes = note_findings(report.findings or ())
    snr_db: dict[str, float] = {}
    if isinstance(report.partial, PartialResult):
        for layer in report.partial.sensitive:
            _add(notes, layer.node, f"left in float: {layer.reason}")
        for worst in report.partial.worst:
            snr_db[worst.node] = worst.snr_db
            text = f"alone in INT8: {format_decibels(worst.snr_db)}"
            _add(notes, worst.node, f"{text}, {worst.work:.1%} of the multiplications")
    if report.validation:
        _note_engines(notes, report.validation.engines)
    return NodeFacts(notes, snr_db, _ALONE)


def _note_engines(notes: dict[str, list[str]], engines: Iterable[EngineReport]) -> None:
    """Add the engine layer of each weighted node."""
    for engine in engines:
        for layer in engine.layers:
            kept = "" if layer.is_kept or not layer.expected_type else ": the promise is broken"
            text = f"{engine.target}, {engine.kind}: {layer.engine or 'no layer names it'}{kept}"
            _add(notes, layer.node, text)


def collect_sensitivity_facts(sensitivity: Sensitivity) -> NodeFacts:
    """Return the errors that a sensitivity measured at nodes."""
    notes: dict[str, list[str]] = {}
    snr_db: dict[str, float] = {}
    for group in sensitivity.groups:
        text = f"{sensitivity.by} {group.name} alone in INT8: {format_decibels(group.snr_db)}"
        if group.gain_db is not None:
            text += f"; in float it gains {group.gain_db:+.2f} dB"
        for node in group.nodes:
            snr_db[node] = min(group.snr_db, snr_db.get(node, group.snr_db))
            _add(notes, node, text)
    for layer in sensitivity.layers or ():
        fall = "" if layer.fall_db is None else f", {layer.fall_db:.2f} dB less than before it"
        _add(
            notes, layer.node, f"at its result, all in INT8: {format_decibels(layer.snr_db)}{fall}"
        )
    return NodeFacts(notes, snr_db, f"with its {sensitivity.by} alone in INT8")


def collect_float_facts(sensitivity: FloatSensitivity) -> NodeFacts:
    """Return the noise of a 16-bit type that was measured at nodes."""
    label = FLOAT_TYPES[sensitivity.to].label
    notes: dict[str, list[str]] = {}
    snr_db: dict[str, float] = {}
    for node in sensitivity.nodes:
        snr_db[node.node] = node.snr_db
        kept = f", kept in FP32 by {node.kept}" if node.kept else ""
        text = f"alone in {label}: {format_decibels(node.snr_db)}{kept}"
        _add(notes, node.node, text)
    return NodeFacts(notes, snr_db, f"with the node alone in {label}")


def collect_changes(changes: PairDiff) -> NodeFacts:
    """Return the changed pairs at each node of the newer model."""
    notes: dict[str, list[str]] = {}
    for change in changes.pairs:
        node = qualified_name(change.edge.graph, change.edge.node)
        _add(notes, node, f"{change.kind}: {change_line(change)}")
    return NodeFacts(notes)


def _add(notes: dict[str, list[str]], node: str, text: str) -> None:
    notes.setdefault(node, []).append(text)
