"""Kernel tables: what was measured about which layers have an INT8 kernel on a target.

One YAML file per backend and compute capability under ``rules/kernels``. A row describes a
layer's form and says what the compiler made of it; `qdq.probing` regenerates the measured ones.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import yaml

from qdq.errors import RuleError
from qdq.index import GraphIndex, Node
from qdq.operands import WEIGHTED
from qdq.target import Target

_PACKAGE = Path(__file__).parent
_SPATIAL = {"Conv", "ConvTranspose", "AveragePool", "MaxPool", "GlobalAveragePool"}
_POOLS = {"AveragePool", "MaxPool"}
_BATCH_AND_CHANNEL = 2
_PLANE_RANK = 4


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One form of layer and what the compiler makes of it."""

    #: What `layer_form` says of the layer; keys left out match anything.
    layer: dict[str, Any]
    int8: bool
    #: The engine layer that ran, or the compiler's words where it refused.
    seen: str


class KernelTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All rows for one backend and compute capability."""

    backend: str
    sm: int
    #: The compiler and version that was measured, or the document the rows come from.
    compiler: str
    rows: tuple[Row, ...]


def shipped_rules() -> Path:
    """Return the folder of shipped rule sets and kernel tables: inside the wheel, or beside the package in a checkout."""
    inside = _PACKAGE / "rules"
    return inside if inside.is_dir() else _PACKAGE.parent / "rules"


@cache
def kernel_table(target: Target) -> KernelTable | None:
    """Return the table for a target, or that of the nearest lower compute capability of its backend; None below all."""
    known = sorted(_tables(target.backend), key=lambda item: item[0])
    wanted = target.sm or max((sm for sm, _ in known), default=0)
    fitting = [path for sm, path in known if sm <= wanted]
    return _read(fitting[-1]) if fitting else None


def missing_kernel(index: GraphIndex, node: Node, target: Target) -> str | None:
    """Return why a layer would not run in INT8 on a target, or None where it would or nothing is known of it."""
    form = layer_form(index, node)
    if form is None:
        return None
    table = kernel_table(target)
    if table is None:
        return f"no kernel table of {target.backend} reaches down to {target}"
    for row in table.rows:
        if all(form.get(key) == value for key, value in row.layer.items()):
            return None if row.int8 else f"{table.compiler} on sm{table.sm}: {row.seen}"
    return None


def layer_form(index: GraphIndex, node: Node) -> dict[str, Any] | None:
    """Return what the tables tell layers apart by: operator, spatial rank, grouping, operands, window and stride of a pool."""
    if is_spatial_mean(index, node):
        return {"operator": "GlobalAveragePool", "spatial": 2}
    if node.op not in _SPATIAL and node.op not in WEIGHTED:
        return None
    form: dict[str, Any] = {"operator": node.op}
    if node.op in _SPATIAL:
        form["spatial"] = _spatial_rank(index, node)
    if node.op in ("Conv", "ConvTranspose"):
        form["groups"] = _grouping(index, node)
    if node.op in _POOLS:
        form["window"] = "x".join(map(str, node.attribute("kernel_shape", [])))
        form["stride"] = max(node.attribute("strides", [1]))
    if node.op in WEIGHTED:
        form["operands"] = "constant" if any(index.is_constant(i) for i in node.inputs[:2]) else "computed"
    return form


def is_spatial_mean(index: GraphIndex, node: Node) -> bool:
    """Whether a node is a ReduceMean over the plane of [batch, channel, height, width], another spelling of GlobalAveragePool."""
    if node.op != "ReduceMean" or index.rank(node.inputs[0]) != _PLANE_RANK:
        return False
    axes = node.attribute("axes")
    if axes is None and len(node.inputs) > 1 and index.is_constant(node.inputs[1]):
        axes = index.constant(node.inputs[1]).ravel().tolist()
    return sorted(a % _PLANE_RANK for a in axes or ()) == [2, 3]


def _spatial_rank(index: GraphIndex, node: Node) -> int | None:
    rank = index.rank(node.inputs[0]) or (index.rank(node.inputs[1]) if node.op.startswith("Conv") else None)
    return None if rank is None else rank - _BATCH_AND_CHANNEL


def _grouping(index: GraphIndex, node: Node) -> str:
    group = int(node.attribute("group", 1))
    if group == 1:
        return "none"
    shape = index.shape(node.inputs[1])
    per_group = shape[1] if shape and len(shape) > 1 and node.op == "Conv" else None
    return "depthwise" if per_group == 1 else "grouped"


def _tables(backend: str) -> list[tuple[int, Path]]:
    folder = shipped_rules() / "kernels"
    return [(int(path.stem.split("-sm")[1]), path) for path in folder.glob(f"{backend}-sm*.yaml")]


def _read(path: Path) -> KernelTable:
    try:
        return msgspec.convert(yaml.safe_load(path.read_text()), KernelTable)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise RuleError(f"{path}: not a kernel table: {error}") from error
