"""Kernel tables: which layers have a kernel on a target, as measured or documented.

One YAML file per backend and compute capability under ``rules/kernels``. A row describes forms of
a layer and the kernel that the compiler chose; `qdq probe` regenerates the measured tables.
docs/kernels.md describes the format and how the rows of a layer are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from qdq.errors import RuleError, first_line
from qdq.files.command_files import note_input
from qdq.files.strict_yaml import parse_package_yaml
from qdq.graph.float_types import FP32, FloatType
from qdq.graph.index import Edge, GraphIndex, Node
from qdq.quantizer import INT4, INT8
from qdq.rules.layer_forms import describe_block_form, describe_layer_form
from qdq.rules.shipped import KERNELS_FOLDER, shipped_rules_folder
from qdq.target import Target

#: Keys for which the nearest lower measured value stands in for a value that was not measured.
_SIZES = ("kernel", "stride", "dilation", "channels", "outputs", "rows", "alpha", "beta")

#: The end of what the compiler said about a layer that it refuses without Q/DQ too.
_REFUSED_AS_FLOAT = "(nor without Q/DQ)"

_Form = dict[str, Any]


class KernelRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kernel that the compiler chose for some forms of a layer."""

    #: Keys and values of `describe_layer_form`; a list where several values were measured.
    #: An omitted key matches every value.
    layer: dict[str, Any]
    #: ``int8`` or ``fp8``; ``int4`` where the layer reads its weight in INT4 and multiplies floats;
    #: ``float``; ``refused``;
    #: ``int8-in-memory`` where the layer reads and writes INT8 and computes in float;
    #: ``int8-in-part`` where some of its products are in INT8.
    runs: str
    #: The engine layer that ran, or the compiler's message where it refused.
    seen: str


class KernelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows for one backend and compute capability."""

    #: `rtx` or `trt`.
    backend: str
    #: The compute capability, as 86 for 8.6.
    sm: int
    #: The compiler and version that was measured, or the document the rows come from.
    compiler: str
    #: The number of one-layer networks that were built; 0 for a table from documents.
    networks: int
    #: Rows for layers with INT8 pairs, with FP8 pairs, and with a pair on the weight in INT4.
    int8: tuple[KernelRow, ...]
    fp8: tuple[KernelRow, ...] = ()
    int4: tuple[KernelRow, ...] = ()

    @property
    def file_name(self) -> str:
        """The name of the table's file."""
        return f"{self.backend}-sm{self.sm}.yaml"

    def list_rows(self, pairs: str) -> tuple[KernelRow, ...]:
        """Return the rows for ``int8``, ``fp8`` or ``int4`` pairs."""
        rows = {"int8": self.int8, "fp8": self.fp8, "int4": self.int4}
        return rows[pairs]


@cache
def read_kernel_table(target: Target) -> KernelTable | None:
    """Return the table for a target, or None where its backend has none for it or below it.

    A target without a table uses that of the nearest lower compute capability of its backend; a
    target without a compute capability uses the highest.
    """
    files = _table_files(target.backend)
    capability = target.sm or max(files, default=0)
    covered = [sm for sm in files if sm <= capability]
    if not covered:
        return None
    nearest = max(covered)
    return _read_table(files[nearest])


def _table_files(backend: str) -> dict[int, Path]:
    """Return the file of each table of a backend, by compute capability times ten."""
    files = {}
    folder = shipped_rules_folder() / KERNELS_FOLDER
    for path in folder.glob(f"{backend}-sm*.yaml"):
        _, capability = path.stem.split("-sm")
        files[int(capability)] = path
    return files


def _read_table(path: Path) -> KernelTable:
    note_input(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = parse_package_yaml(text)
        return msgspec.convert(content, KernelTable)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise RuleError(f"{path}: the file is not a kernel table: {first_line(error)}") from error


def describe_borrowed_tables(targets: Iterable[Target]) -> tuple[str, ...]:
    """Return one sentence for each target that has no kernel table of its own."""
    sentences: list[str] = []
    for target in targets:
        clause = _describe_borrowed_table(target)
        if clause:
            sentences.append(f"{clause}.")
    return tuple(sentences)


@cache
def _describe_borrowed_table(target: Target) -> str:
    """Return the table that a target uses in place of its own, or "" where it has one."""
    table = read_kernel_table(target)
    if table is None:
        return f"{target} has no kernel table, nor has a lower SM of {target.backend}"
    if table.sm == target.sm:
        return ""
    return f"{target} has no kernel table, so that of {target.backend}:sm{table.sm} is used"


def explain_missing_kernel(
    index: GraphIndex,
    node: Node,
    target: Target,
    pairs: str = INT8,
    float_type: FloatType = FP32,
) -> str | None:
    """Return the reason why a layer would not run in INT8 (or ``fp8``) on a target.

    None where it would, and for operators that the tables do not cover. `float_type` is the type
    that the float part of the model gets.
    """
    form = describe_layer_form(index, node, float_type)
    if form is None:
        return None
    form_items = tuple(form.items())
    return _explain_missing_kernel(target, form_items, pairs)


def explain_missing_block_kernel(
    index: GraphIndex, edge: Edge, target: Target, block_size: int, float_type: FloatType = FP32
) -> str | None:
    """Return the reason why a weight with blocks of a size would not stay in INT4 on a target.

    None where it would, for edges that have no blocks, and for a backend without INT4 rows.
    """
    form = describe_block_form(index, edge, block_size, float_type)
    table = read_kernel_table(target)
    if form is None or table is None or not table.int4:
        return None
    form_items = tuple(form.items())
    return _explain_missing_kernel(target, form_items, INT4)


@cache
def _explain_missing_kernel(
    target: Target, form_items: tuple[tuple[str, Any], ...], pairs: str
) -> str | None:
    table = read_kernel_table(target)
    borrowed = _describe_borrowed_table(target)
    if table is None:
        return borrowed
    origin = f"{table.compiler} on sm{table.sm}"
    if borrowed:
        origin = f"{origin} ({borrowed})"
    rows = find_deciding_rows(table.list_rows(pairs), dict(form_items))
    if not rows and table.networks:
        return f"{origin}: the table has no row for this layer"
    accepted = (pairs, f"{pairs}-in-part")
    for row in rows:
        if row.runs == "refused":
            return f"{origin}: does not build: {row.seen}{_name_row(table, row, pairs)}"
        if row.runs not in accepted:
            return f"{origin}: {row.seen}{_name_row(table, row, pairs)}"
    return None


def _name_row(table: KernelTable, row: KernelRow, pairs: str) -> str:
    """Return the file, section and keys of a row, in brackets."""
    keys = ", ".join(f"{key}: {_format_value(value)}" for key, value in row.layer.items())
    return f" ({KERNELS_FOLDER}/{table.file_name}, {pairs}, {{{keys}}})"


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


def explain_refusal(index: GraphIndex, node: Node, target: Target) -> str:
    """Return the reason why a target does not build a layer in its type, "" where it may.

    The layer is refused without Q/DQ too.
    """
    form = describe_layer_form(index, node)
    table = read_kernel_table(target)
    if form is None or table is None:
        return ""
    for row in find_deciding_rows(table.int8, form):
        if row.runs == "refused" and row.seen.endswith(_REFUSED_AS_FLOAT):
            reason = row.seen.removesuffix(_REFUSED_AS_FLOAT).strip()
            return f"{table.compiler} on sm{table.sm}: {reason}"
    return ""


def find_deciding_rows(table: Iterable[KernelRow], form: _Form) -> list[KernelRow]:
    """Return the rows of a table that decide about a layer.

    A row matches where all its keys do. It decides unless another matching row has all its keys and
    more. A size matches the nearest lower value that was measured together with the same keys, or
    the lowest of all; other values match themselves only.
    """
    operator = form["operator"]
    rows = [row for row in table if row.layer["operator"] == operator and _has_block(row, form)]
    matching = [row for row in rows if _matches(row, form, rows)]
    return [row for row in matching if not _is_refined(row, matching)]


def _has_block(row: KernelRow, form: _Form) -> bool:
    """Whether a row is of the form's block size: sizes are measured for each block size alone."""
    if "block" not in row.layer:
        return True
    return form.get("block") in listed_values(row.layer["block"])


def _matches(row: KernelRow, form: _Form, rows: list[KernelRow]) -> bool:
    for key in row.layer:
        if key not in form:
            return False
        if not _value_matches(form[key], row, key, rows):
            return False
    return True


def _value_matches(value: Any, row: KernelRow, key: str, rows: list[KernelRow]) -> bool:
    """Whether a value, or the nearest measured one, is among the values of a row."""
    row_values = listed_values(row.layer[key])
    if key not in _SIZES or isinstance(value, str):
        return value in row_values
    keys = row.layer.keys()
    measured: list[Any] = []
    for other in rows:
        if other.layer.keys() == keys:
            measured += listed_values(other.layer[key])
    not_larger = (size for size in measured if size <= value)
    nearest = max(not_larger, default=min(measured))
    return nearest in row_values


def _is_refined(row: KernelRow, matching: list[KernelRow]) -> bool:
    """Whether another matching row has all keys of a row and more."""
    keys = row.layer.keys()
    return any(keys < other.layer.keys() for other in matching)


def listed_values(value: Any) -> list[Any]:
    """Return the values of a key of a row: the items of a list, else the value itself."""
    return value if isinstance(value, list) else [value]
