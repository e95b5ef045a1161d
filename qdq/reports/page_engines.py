"""The engines of a page side by side: those of a validation, and those of FP16 files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from qdq.pipeline.file_choice import FP16, QUANTIZED, QUANTIZED_FP16, FileChoice, FileEngine
from qdq.reports.engine_layers import count_layers
from qdq.reports.page import EngineRow
from qdq.validation.engine_report import EngineReport

_MEGABYTE = 1e6


def list_engines(
    reports: Iterable[EngineReport], choices: Iterable[FileChoice]
) -> tuple[EngineRow, ...]:
    """Return the engines by target; an engine that both know is from the validation."""
    rows: list[EngineRow] = []
    for report in reports:
        rows += _list_reported(report)
    for choice in choices:
        known = {(row.target, row.file) for row in rows}
        for row in _list_choice(choice):
            if (row.target, row.file) not in known:
                rows.append(row)
    targets = list(dict.fromkeys(row.target for row in rows))
    rows.sort(key=lambda row: targets.index(row.target))
    return tuple(_mark_smallest(rows, {choice.target: choice for choice in choices}))


def _list_reported(report: EngineReport) -> Iterator[EngineRow]:
    if report.kind != "read":
        yield EngineRow(
            report.target,
            report.kind,
            "float",
            report.float_failure,
            report.float_kernels,
            report.float_bytes / _MEGABYTE,
            report.float_milliseconds,
        )
    yield EngineRow(
        report.target,
        report.kind,
        report.types,
        report.failure,
        report.kernels,
        report.bytes / _MEGABYTE,
        report.milliseconds,
        "" if report.failure else count_layers(report),
    )


def _list_choice(choice: FileChoice) -> Iterator[EngineRow]:
    for engine in choice.files:
        name = name_file(engine, choice.types)
        yield EngineRow(
            choice.target,
            "compiled",
            name,
            engine.failure,
            engine.kernels,
            engine.bytes / _MEGABYTE,
        )
        yield EngineRow(
            choice.predicted_target,
            "predicted",
            name,
            engine.predicted_failure,
            engine.predicted_kernels,
            engine.predicted_bytes / _MEGABYTE,
        )


def name_file(engine: FileEngine, types: str) -> str:
    """Return the name of a file of a choice; `types` are those of the pairs."""
    names = {QUANTIZED: types, FP16: "FP16 alone", QUANTIZED_FP16: f"{types} with FP16"}
    return names[engine.file]


def _mark_smallest(
    rows: Sequence[EngineRow], choices: dict[str, FileChoice]
) -> Iterator[EngineRow]:
    """Yield the rows, the engine that a choice calls the smallest marked."""
    for row in rows:
        choice = choices.get(row.target)
        smallest = choice.find(choice.smallest) if choice else None
        if choice and smallest and row.file == name_file(smallest, choice.types):
            yield msgspec.structs.replace(row, is_smallest=True)
        else:
            yield row
