"""Sections about the content of a model file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from qdq.printable import shorten
from qdq.quantized.inspection import InspectedTensor, Inspection
from qdq.reports.sections import Section, count_noun

_KILO = 1000
_UNITS = ("bytes", "kB", "MB", "GB")


def inspection_sections(inspection: Inspection, layers: bool = False) -> Iterator[Section]:
    """Yield what is in a model, with `layers` a row for each weighted layer too."""
    yield Section(inspection.model, tuple(_file_lines(inspection)))
    values = [("input", tensor) for tensor in inspection.inputs]
    values += [("output", tensor) for tensor in inspection.outputs]
    rows = [(kind, tensor.name, tensor.type, _format_shape(tensor)) for kind, tensor in values]
    yield Section("Inputs and outputs", (), ("", "name", "type", "shape"), tuple(rows))
    yield Section("Precision", tuple(_precision_lines(inspection)))
    yield Section("Operators", (_format_counts(inspection.operators),))
    stored = [(item.type, item.tensors, format_bytes(item.bytes)) for item in inspection.stored]
    yield Section("Stored tensors", (), ("type", "tensors", "size"), tuple(stored))
    if inspection.recorded:
        yield Section("Recorded by qdq", tuple(_recorded_lines(inspection.recorded)))
    if layers:
        yield _layer_table(inspection)


def format_bytes(count: int) -> str:
    """Return a number of bytes in the largest unit that leaves at least one."""
    size = float(count)
    for unit in _UNITS[:-1]:
        if size < _KILO:
            return f"{size:.4g} {unit}"
        size /= _KILO
    return f"{size:.4g} {_UNITS[-1]}"


def _file_lines(inspection: Inspection) -> Iterator[str]:
    yield f"size: {format_bytes(inspection.file_bytes)}{_describe_external(inspection)}"
    opsets = ", ".join(f"{domain} {version}" for domain, version in inspection.opsets.items())
    yield f"opset: {opsets}; IR version {inspection.ir_version}"
    yield f"producer: {inspection.producer or 'not named'}"
    yield f"SHA-256: {inspection.digest}"
    yield from inspection.notes


def _describe_external(inspection: Inspection) -> str:
    files = inspection.external_data
    if not files:
        return ""
    size = format_bytes(sum(file.bytes for file in files))
    names = ", ".join(file.location for file in files)
    return f", and {size} of external data in {names}"


def _precision_lines(inspection: Inspection) -> Iterator[str]:
    count = count_noun(len(inspection.layers), "weighted layer")
    yield f"{count}: {_format_counts(inspection.precisions) or 'none'}"
    if not inspection.pairs:
        yield "no Q/DQ pairs"
        return
    edges = count_noun(sum(inspection.pairs.values()), "quantized edge")
    yield f"{edges}: {_format_counts(inspection.pairs)}"


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _recorded_lines(recorded: Mapping[str, str]) -> Iterator[str]:
    for key, value in recorded.items():
        yield f"{key.removeprefix('qdq.')}: {shorten(', '.join(value.splitlines()))}"


def _layer_table(inspection: Inspection) -> Section:
    headers = ("layer", "operator", "precision", "data", "weight", "weight shape", "rules")
    rows = []
    for layer in inspection.layers:
        shape = "?" if layer.weight_shape is None else _join_sizes(layer.weight_shape)
        cells = (layer.data or "float", layer.weight or "float", shape, layer.rules)
        rows.append((layer.node, layer.op, layer.precision, *cells))
    return Section("Layers", (), headers, tuple(rows))


def _format_shape(tensor: InspectedTensor) -> str:
    return "unknown rank" if tensor.shape is None else _join_sizes(tensor.shape) or "scalar"


def _join_sizes(sizes: Iterable[int | str]) -> str:
    return "x".join(map(str, sizes))
