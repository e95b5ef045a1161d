"""Kernel tables: that they say what the compiler does, cover what is probed, and are looked up as documented."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
import yaml

from qdq.errors import UsageError
from qdq.index import GraphIndex
from qdq.kernels import KernelTable, Row, kernel_table, layer_form, missing_kernel, shipped_rules
from qdq.loading import load
from qdq.probing import LAYER, OTHER_AVERAGES, float_network, forms, measure, network, probe, table_yaml
from qdq.target import RTX_CAPABILITIES, Target, parse_target

FILES = sorted((shipped_rules() / "kernels").glob("*.yaml"), key=lambda path: path.stem)
MEASURED = tuple(Target("rtx", sm) for sm in RTX_CAPABILITIES)
PAIR = ("QuantizeLinear", "DequantizeLinear")
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")

CONVOLUTION = {"operator": "Conv", "spatial": 2, "groups": "none", "operands": "constant"}
DEPTHWISE = {**CONVOLUTION, "groups": "depthwise"}
DECONVOLUTION = {**CONVOLUTION, "operator": "ConvTranspose"}
PRODUCT = {"operator": "MatMul", "operands": "constant"}
AVERAGE = {"operator": "AveragePool", "spatial": 2, "window": "3x3", "stride": 1}
GLOBAL_AVERAGE = {"operator": "GlobalAveragePool", "spatial": 2}


def table(target: Target) -> KernelTable:
    """Return a target's table, which has to exist."""
    found = kernel_table(target)
    assert found is not None
    return found


def row(target: Target, form: dict[str, Any]) -> Row:
    """Return the committed row of exactly one form."""
    (found,) = (r for r in table(target).rows if r.layer == form)
    return found


def spelled(form: dict[str, Any]) -> str:
    """Return a form as a test's name."""
    return "-".join(map(str, form.values()))


def looked_up(form: dict[str, Any], target: Target) -> str | None:
    """Return what the tables say of a float layer of one form."""
    index = GraphIndex(load(float_network(form)))
    return missing_kernel(index, index.by_label[LAYER], target)


@needs_compiler
@pytest.mark.parametrize(
    ("sm", "form"),
    [(86, CONVOLUTION), (75, DEPTHWISE), (89, DECONVOLUTION), (75, PRODUCT), (80, PRODUCT), (121, AVERAGE), (120, GLOBAL_AVERAGE)],
    ids=lambda value: spelled(value) if isinstance(value, dict) else f"sm{value}",
)
def test_a_committed_row_says_what_the_compiler_does(sm: int, form: dict[str, Any]) -> None:
    target = Target("rtx", sm)

    assert measure(form, target) == row(target, form)


@needs_compiler
def test_a_refusal_is_no_int8_and_keeps_the_reason_on_one_line() -> None:
    measured = measure(PRODUCT, Target("rtx", 75))

    assert measured == Row(PRODUCT, False, "does not build: FP32 GEMM is not supported (nor without Q/DQ)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_table_is_named_after_its_target_and_written_as_probing_writes_it(path: Path) -> None:
    backend, sm = path.stem.split("-sm")
    loaded = table(Target(backend, int(sm)))

    assert (loaded.backend, loaded.sm) == (backend, int(sm))
    assert path.read_text() == table_yaml(loaded)


def test_every_compute_capability_that_the_compiler_knows_has_its_own_table() -> None:
    assert [table(target).sm for target in MEASURED] == list(RTX_CAPABILITIES)


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_a_measured_table_has_one_row_for_every_form(target: Target) -> None:
    assert [r.layer for r in table(target).rows] == [*forms(), OTHER_AVERAGES.layer]
    assert table(target).compiler.startswith("TensorRT-RTX 1.")


@pytest.mark.parametrize("sm", [75, 80])
def test_a_documented_table_says_so_and_speaks_of_forms_that_exist(sm: int) -> None:
    documented = table(Target("trt", sm))

    assert "not measured here" in documented.compiler
    for r in documented.rows:
        assert any(r.layer.items() <= form.items() for form in forms()), r


@pytest.mark.parametrize("form", forms(), ids=spelled)
def test_each_network_is_one_layer_of_its_form_with_and_without_pairs(form: dict[str, Any]) -> None:
    for model in (float_network(form), network(form)):
        onnx.checker.check_model(model, full_check=True)
        index = GraphIndex(load(model))
        assert form.items() <= (layer_form(index, index.by_label[LAYER]) or {}).items()
        assert [n.op for n in index.nodes if n.op not in PAIR] == [form["operator"]]


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_a_layer_lacks_a_kernel_exactly_where_its_row_is_not_int8(target: Target) -> None:
    for r in table(target).rows[:-1]:
        said = looked_up(r.layer, target)
        assert said == (None if r.int8 else f"{table(target).compiler} on sm{target.sm}: {r.seen}")


def test_an_averaging_window_that_was_not_built_counts_as_one_without_a_kernel() -> None:
    wide = {**AVERAGE, "window": "7x7", "stride": 7}

    assert looked_up(wide, Target("rtx", 86)) == f"{table(Target('rtx', 86)).compiler} on sm86: {OTHER_AVERAGES.seen}"


@pytest.mark.parametrize(
    ("asked", "answering"),
    [("trt:sm75", 75), ("trt:sm79", 75), ("trt:sm86", 80), ("trt:sm120", 80), ("trt", 80), ("rtx:sm86", 86)],
)
def test_a_target_without_a_table_uses_the_nearest_lower_one_and_an_unnamed_gpu_the_highest(asked: str, answering: int) -> None:
    assert table(parse_target(asked)).sm == answering


def test_below_every_table_each_layer_lacks_a_kernel_and_the_reason_names_the_target() -> None:
    assert kernel_table(Target("trt", 70)) is None
    assert looked_up(CONVOLUTION, Target("trt", 70)) == "no kernel table of trt reaches down to trt:sm70"


def test_a_form_that_no_row_speaks_of_is_taken_to_have_a_kernel() -> None:
    assert looked_up({**CONVOLUTION, "spatial": 1}, Target("trt", 80)) is None


def test_only_rtx_targets_can_be_probed() -> None:
    with pytest.raises(UsageError, match="trt:sm80: only rtx targets can be probed"):
        probe(Target("trt", 80))


def test_the_text_of_a_table_takes_three_lines_a_row() -> None:
    written = table_yaml(KernelTable("rtx", 86, "TensorRT-RTX 1.0", (Row(PRODUCT, True, "gemm Int8,Int8 -> Float"),)))

    assert written.splitlines()[3:] == [
        "rows:",
        "- layer: {operator: MatMul, operands: constant}",
        "  int8: true",
        "  seen: gemm Int8,Int8 -> Float",
    ]
    assert yaml.safe_load(written)["compiler"] == "TensorRT-RTX 1.0"
