"""Kernel tables: what was measured about which layers have an INT8 kernel on a target.

One YAML file per backend and compute capability under ``rules/kernels``. A row describes forms of
layer and says what the compiler made of them; `qdq probe` regenerates the measured ones.
docs/kernels.md describes the format and how a layer finds its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import onnx
import yaml

from qdq.errors import RuleError, first_line
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import CONVOLUTIONS, MATRIX_PRODUCTS, POOLS, RECURRENT, WEIGHTED
from qdq.graph.patterns import PLANE_RANK, is_spatial_mean
from qdq.quantizer import INT8
from qdq.rules.shipped import shipped_rules_folder
from qdq.target import Target

_FULL = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.UNDEFINED, None)
_SAME = ("SAME_UPPER", "SAME_LOWER", b"SAME_UPPER", b"SAME_LOWER")

#: Keys of which a value that was not measured counts as the nearest lower one.
_SIZES = ("kernel", "stride", "dilation", "channels", "outputs", "rows", "alpha", "beta")
_BATCH_AND_CHANNEL = 2


class KernelRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the compiler makes of some forms of layer."""

    #: Keys and values of `describe_layer_form`, a list where several values were measured; keys left out match anything.
    layer: dict[str, Any]
    #: ``int8`` or ``fp8``; ``float``; ``refused``; ``int8-in-memory`` where it reads and writes INT8 and computes in float;
    #: ``int8-in-part`` where some of its products are in INT8.
    runs: str
    #: The engine layer that ran, or the compiler's words where it refused.
    seen: str


class KernelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows for one backend and compute capability."""

    backend: str
    sm: int
    #: The compiler and version that was measured, or the document the rows come from.
    compiler: str
    #: How many one-layer networks were built; 0 for a table that documents say.
    networks: int
    #: Rows for layers with INT8 pairs, and with FP8 pairs.
    int8: tuple[KernelRow, ...]
    fp8: tuple[KernelRow, ...] = ()


@cache
def read_kernel_table(target: Target) -> KernelTable | None:
    """Return the table for a target, or that of the nearest lower compute capability of its backend; None below all."""
    known = sorted(_tables(target.backend), key=lambda item: item[0])
    wanted = target.sm or max((sm for sm, _ in known), default=0)
    fitting = [path for sm, path in known if sm <= wanted]
    return _read(fitting[-1]) if fitting else None


def describe_borrowed_tables(targets: Iterable[Target]) -> tuple[str, ...]:
    """Return one sentence for each target that has no kernel table of its own."""
    return tuple(_borrowed(target) for target in targets if _borrowed(target))


def explain_missing_kernel(
    index: GraphIndex, node: Node, target: Target, pairs: str = INT8
) -> str | None:
    """Return why a layer would not run in INT8 (or ``fp8``) on a target, or None where it would or nothing is known of it."""
    form = describe_layer_form(index, node)
    return None if form is None else _missing(target, tuple(form.items()), pairs)


@cache
def _missing(target: Target, form: tuple[tuple[str, Any], ...], pairs: str) -> str | None:
    table = read_kernel_table(target)
    if table is None:
        return _borrowed(target)
    source = (
        f"{table.compiler} on sm{table.sm}{f' ({_borrowed(target)})' if _borrowed(target) else ''}"
    )
    rows = find_deciding_rows(table.int8 if pairs == INT8 else table.fp8, dict(form))
    if not rows and table.networks:
        return f"{source}: no row of the table speaks of such a layer"
    return next(
        (
            f"{source}: {_outcome(row)}"
            for row in rows
            if row.runs not in (pairs, f"{pairs}-in-part")
        ),
        None,
    )


def find_deciding_rows(table: Iterable[KernelRow], form: dict[str, Any]) -> list[KernelRow]:
    """Return the rows of a table that decide about a layer: those that match and whose keys no other matching row has all of.

    A number matches the nearest lower one that was measured for it together with the same keys, or
    the lowest of all; other values match themselves only.
    """
    rows = [row for row in table if row.layer["operator"] == form["operator"]]
    matching = [
        row
        for row in rows
        if all(key in form and _fits(form[key], row, key, rows) for key in row.layer)
    ]
    return [
        row
        for row in matching
        if not any(row.layer.keys() < other.layer.keys() for other in matching)
    ]


def listed_values(value: Any) -> list[Any]:
    """Return the values that a key of a row stands for: of a list each, else the one."""
    return value if isinstance(value, list) else [value]


def _fits(wanted: Any, row: KernelRow, key: str, rows: Iterable[KernelRow]) -> bool:
    """Whether a value is one of a row's, or the nearest measured one is: among all rows that have the same keys as `row`."""
    if key not in _SIZES or isinstance(wanted, str):
        return wanted in listed_values(row.layer[key])
    measured = [
        value
        for other in rows
        if other.layer.keys() == row.layer.keys()
        for value in listed_values(other.layer[key])
    ]
    return max(
        (value for value in measured if value <= wanted), default=min(measured)
    ) in listed_values(row.layer[key])


def _outcome(row: KernelRow) -> str:
    return f"does not build: {row.seen}" if row.runs == "refused" else row.seen


@cache
def _borrowed(target: Target) -> str:
    table = read_kernel_table(target)
    if table is None:
        return f"no kernel table of {target.backend} reaches down to {target}"
    if table.sm == target.sm:
        return ""
    return f"no kernel table for {target}; that of {target.backend}:sm{table.sm} is used"


def describe_layer_form(index: GraphIndex, node: Node) -> dict[str, Any] | None:
    """Return what the tables tell layers apart by, as docs/kernels.md says; None for operators that no rule asks them about.

    What the graph does not say, such as dimensions that are not known, is left out.
    """
    if node.op not in POOLS and node.op not in WEIGHTED and not is_spatial_mean(index, node):
        return None
    op = "GlobalAveragePool" if node.op == "ReduceMean" else node.op
    form: dict[str, Any] = {
        "operator": op,
        "graph": "float32" if index.elem_type(node.inputs[0]) in _FULL else "float16",
    }
    if node.op in MATRIX_PRODUCTS:
        form |= _product_form(index, node)
    elif node.op in RECURRENT:
        form |= {
            "scales": "usual",
            "rows": _size(index.shape(node.inputs[0]), 0 if node.attribute("layout", 0) else 1)
            or 1,
        }
    elif node.op != "Einsum":
        form |= _window_form(index, node)
    if node.op in WEIGHTED:
        form["operands"] = (
            "constant" if any(index.is_constant(i) for i in node.inputs[:2]) else "computed"
        )
    return {key: value for key, value in form.items() if value is not None}


def _window_form(index: GraphIndex, node: Node) -> dict[str, Any]:
    shape, weight = (
        index.shape(node.inputs[0]),
        index.shape(node.inputs[1]) if node.op in CONVOLUTIONS else None,
    )
    sides = tuple(node.attribute("kernel_shape", [])) or tuple(weight or ())[_BATCH_AND_CHANNEL:]
    form: dict[str, Any] = {"spatial": _spatial_rank(index, node), "channels": _size(shape, 1)}
    if shape and len(shape) > _BATCH_AND_CHANNEL:
        form["plane"] = "point" if all(size == 1 for size in shape[_BATCH_AND_CHANNEL:]) else "wide"
    if sides:
        form["kernel"] = sides[0] if len(set(sides)) == 1 else "x".join(map(str, sides))
    for key, name in (("stride", "strides"), ("dilation", "dilations")):
        form[key] = max(node.attribute(name, [1]) or [1])
    if node.op in CONVOLUTIONS:
        form["groups"] = _grouping(index, node)
        form["outputs"] = _outputs(node, weight)
    else:
        form["padded"] = int(
            any(node.attribute("pads", [])) or node.attribute("auto_pad", b"NOTSET") in _SAME
        )
        form["counted"] = int(node.attribute("count_include_pad", 0))
    return form


def _product_form(index: GraphIndex, node: Node) -> dict[str, Any]:
    data, weight = index.shape(node.inputs[0]), index.shape(node.inputs[1])
    if node.op == "Gemm":
        across, turned = int(node.attribute("transA", 0)), int(node.attribute("transB", 0))
        return {
            "rows": _size(data, 1 if across else 0), "channels": _size(data, 0 if across else 1), "outputs": _size(weight, 0 if turned else 1),
            "transA": across, "transB": turned, "bias": int(len(node.inputs) > 2 and bool(node.inputs[2])),  # noqa: PLR2004 the third input
            "alpha": float(node.attribute("alpha", 1.0)), "beta": float(node.attribute("beta", 1.0)),
        }  # fmt: skip
    batched = None
    if data and weight:
        both = min(len(weight), PLANE_RANK)
        batched = {3: "both", 4: "heads"}.get(
            both, "data" if len(data) > _BATCH_AND_CHANNEL else "none"
        )
    return {
        "rows": _size(data, -2),
        "channels": _size(data, -1),
        "outputs": _size(weight, -1),
        "batched": batched,
    }


def _outputs(node: Node, weight: Sequence[int | None] | None) -> int | None:
    per_group = _size(weight, 0 if node.op == "Conv" else 1)
    return (
        per_group
        if node.op == "Conv" or per_group is None
        else per_group * int(node.attribute("group", 1))
    )


def _size(shape: Sequence[int | None] | None, axis: int) -> int | None:
    """Return the length of an axis, None where it is not known."""
    fits = shape is not None and -len(shape) <= axis < len(shape)
    size = shape[axis] if shape is not None and fits else None
    return size if isinstance(size, int) and size > 0 else None


def _spatial_rank(index: GraphIndex, node: Node) -> int | None:
    rank = index.rank(node.inputs[0]) or (
        index.rank(node.inputs[1]) if node.op in CONVOLUTIONS else None
    )
    return None if rank is None else rank - _BATCH_AND_CHANNEL


def _grouping(index: GraphIndex, node: Node) -> str:
    """Return ``none``, ``depthwise`` where each group reads one channel and writes one, or ``grouped``."""
    group = int(node.attribute("group", 1))
    if group == 1:
        return "none"
    shape = index.shape(node.inputs[1])
    return (
        "depthwise"
        if shape is not None and tuple(shape[:_BATCH_AND_CHANNEL]) == (group, 1)
        else "grouped"
    )


def _tables(backend: str) -> list[tuple[int, Path]]:
    folder = shipped_rules_folder() / "kernels"
    return [(int(path.stem.split("-sm")[1]), path) for path in folder.glob(f"{backend}-sm*.yaml")]


def _read(path: Path) -> KernelTable:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), KernelTable)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise RuleError(f"{path}: not a kernel table: {first_line(error)}") from error
