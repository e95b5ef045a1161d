"""Kernel tables: that they say what the compiler does, cover what is probed, and are looked up as documented."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

import qdq
from qdq.engines import kernel_probe
from qdq.engines.engine import Engine
from qdq.engines.kernel_probe import (
    OPERATORS,
    list_forms,
    measure_form,
    merge_rows,
    probe,
    table_yaml,
)
from qdq.engines.one_layer_models import LAYER, LayerForm, make_network
from qdq.graph.float_types import FP16, FP32
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.loader import load
from qdq.rules.kernel_tables import (
    KernelRow,
    KernelTable,
    explain_missing_block_kernel,
    explain_missing_kernel,
    find_deciding_rows,
    read_kernel_table,
)
from qdq.rules.layer_forms import describe_block_form, describe_layer_form
from qdq.rules.shipped import shipped_rules_folder
from qdq.target import RTX_CAPABILITIES, Target, parse_target
from tests.support.cli_runner import refused
from tests.support.cli_runner import run as cli
from tests.support.graphs import build, node, noise

FILES = sorted((shipped_rules_folder() / "kernels").glob("*.yaml"), key=lambda path: path.stem)
MEASURED = tuple(Target("rtx", sm) for sm in RTX_CAPABILITIES)
PAIR = ("QuantizeLinear", "DequantizeLinear")
RUNS = ("int8", "fp8", "int4", "float", "refused", "int8-in-memory", "int8-in-part", "fp8-in-part")
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)

#: A sample of the tables' rows: the forms that differ between targets, and those that rules rest on.
SAMPLE: list[tuple[int, LayerForm, str]] = [
    (86, {"operator": "Conv", "graph": "float32", "spatial": 2, "kernel": 3}, "int8"),
    (75, {"operator": "Conv", "graph": "float32", "spatial": 2, "kernel": 3}, "int8"),
    (75, {"operator": "Conv", "graph": "float32", "spatial": 3, "channels": 16}, "int8"),
    (121, {"operator": "Conv", "graph": "float16", "groups": "depthwise", "channels": 65}, "int8"),
    (
        86,
        {"operator": "Conv", "graph": "float32", "plane": "point", "kernel": 1, "channels": 2},
        "int8",
    ),
    (86, {"operator": "Conv", "graph": "float32", "scales": "axis 1"}, "int8"),
    (
        80,
        {"operator": "ConvTranspose", "graph": "float32", "spatial": 2, "kernel": 4, "stride": 2},
        "int8",
    ),
    (75, {"operator": "Gemm", "graph": "float16", "rows": 1, "channels": 16, "outputs": 4}, "int8"),
    (
        75,
        {"operator": "MatMul", "graph": "float32", "batched": "heads", "operands": "computed"},
        "int8",
    ),
    (89, {"operator": "MatMul", "graph": "float32", "scales": "wrong axis"}, "int8"),
    (120, {"operator": "LSTM", "graph": "float16", "scales": "usual", "rows": 32}, "int8"),
    (
        86,
        {
            "operator": "AveragePool",
            "graph": "float32",
            "spatial": 2,
            "counted": 0,
            "kernel": 2,
            "stride": 2,
        },
        "int8",
    ),
    (
        86,
        {
            "operator": "AveragePool",
            "graph": "float32",
            "spatial": 2,
            "counted": 1,
            "kernel": 2,
            "stride": 2,
        },
        "int8",
    ),
    (120, {"operator": "GlobalAveragePool", "graph": "float32", "spatial": 2}, "int8"),
    (86, {"operator": "MatMul", "graph": "float32"}, "fp8"),
    (75, {"operator": "Gemm", "graph": "float16", "block": 128, "channels": 256}, "int4"),
    (86, {"operator": "MatMul", "graph": "float16", "block": 64, "channels": 128}, "int4"),
    (80, {"operator": "Gemm", "graph": "float32", "block": 128, "channels": 512, "odd": 1}, "int4"),
    (120, {"operator": "MatMul", "graph": "float32", "block": 128, "channels": 128}, "int4"),
    (
        89,
        {"operator": "MatMul", "graph": "float16", "batched": "heads", "operands": "computed"},
        "fp8",
    ),
]


def table(target: Target) -> KernelTable:
    """Return a target's table, which has to exist."""
    result = read_kernel_table(target)
    assert result is not None
    return result


def holds(row: KernelRow, form: LayerForm) -> bool:
    """Whether a form is among those that a row merges."""
    return row.layer.keys() == form.keys() and all(
        form[k] in (v if isinstance(v, list) else [v]) for k, v in row.layer.items()
    )


def spelled(value: Any) -> str:
    """Return a form as a test's name."""
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def index_of(form: LayerForm, dynamic: bool = False) -> GraphIndex:
    """Return the float layer of a form, indexed."""
    model = make_network(form, "none")
    if dynamic:
        for dim in model.graph.input[0].type.tensor_type.shape.dim:
            dim.dim_param = "n"
    return GraphIndex(load(model))


def looked_up(form: LayerForm, target: Target) -> str | None:
    """Return what the tables say of a float layer of one form."""
    index = index_of(form)
    return explain_missing_kernel(index, index.by_label[LAYER], target)


@needs_compiler
@pytest.mark.parametrize(("sm", "form", "pairs"), SAMPLE, ids=spelled)
def test_a_committed_row_says_what_the_compiler_does(sm: int, form: LayerForm, pairs: str) -> None:
    target = Target("rtx", sm)
    (committed,) = (row for row in getattr(table(target), pairs) if holds(row, form))
    measured = measure_form(form, target, pairs)

    assert (measured.runs, measured.seen) == (committed.runs, committed.seen)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_committed_table_is_named_after_its_target(path: Path) -> None:
    backend, sm = path.stem.split("-sm")
    loaded = table(Target(backend, int(sm)))

    assert (loaded.backend, loaded.sm) == (backend, int(sm))
    assert {row.runs for row in (*loaded.int8, *loaded.fp8, *loaded.int4)} <= set(RUNS)
    if loaded.networks:
        assert path.read_text() == table_yaml(loaded)


def test_every_compute_capability_that_the_compiler_knows_has_its_own_table() -> None:
    assert [table(target).sm for target in MEASURED] == list(RTX_CAPABILITIES)


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_a_measured_table_speaks_of_every_form_once(target: Target) -> None:
    for form in list_forms():
        assert sum(holds(row, form) for row in table(target).int8) == 1, form
    assert table(target).compiler.startswith("TensorRT-RTX 1.")
    assert table(target).networks >= len(list_forms())


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_fp8_is_measured_in_full_where_the_target_has_it(target: Target) -> None:
    rows = table(target).fp8
    covered = [form for form in list_forms("fp8") if any(holds(row, form) for row in rows)]
    assert bool(covered) == (target.sm >= 89)
    assert {row.layer["operator"] for row in rows} == {
        form["operator"] for form in list_forms("fp8")
    }


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_int4_is_measured_in_full_and_refused_below_sm80(target: Target) -> None:
    rows = table(target).int4
    for form in list_forms("int4"):
        assert sum(holds(row, form) for row in rows) == 1, form
    assert {row.runs for row in rows} == ({"refused"} if target.sm < 80 else {"int4", "float"})


@pytest.mark.parametrize("sm", [75, 80])
def test_a_documented_table_says_so_and_speaks_of_forms_that_exist(sm: int) -> None:
    documented = table(Target("trt", sm))

    assert "not measured here" in documented.compiler
    assert documented.networks == 0
    for row in documented.int8:
        assert row.layer["operator"] in OPERATORS


LOOKED_UP = [
    form
    for form in list_forms()
    if form["operator"]
    in ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "MaxPool", "GlobalAveragePool")
]


@pytest.mark.parametrize("pairs", ["int8", "fp8", "int4", "none"])
def test_each_network_is_one_valid_layer(pairs: str) -> None:
    for form in list_forms("int8" if pairs == "none" else pairs):
        model = make_network(form, pairs)
        onnx.checker.check_model(model)
        assert [n.op_type for n in model.graph.node if n.op_type not in PAIR] == [form["operator"]]
        assert any(n.op_type in PAIR for n in model.graph.node) == (pairs != "none")


def test_the_form_of_each_network_is_read_back_from_its_graph() -> None:
    for form in LOOKED_UP:
        index = index_of(form)
        expected = {key: value for key, value in form.items() if key != "scales"}
        assert (
            expected.items() <= (describe_layer_form(index, index.by_label[LAYER]) or {}).items()
        ), form


@pytest.mark.parametrize("sm", [75, 86])
def test_a_weight_lacks_an_int4_kernel_exactly_where_its_row_says_so(sm: int) -> None:
    target = Target("rtx", sm)
    for form in list_forms("int4"):
        (row,) = (row for row in table(target).int4 if holds(row, form))
        index = index_of(form)
        edge = Edge("", LAYER, 1, "w")
        asked = describe_block_form(index, edge, form["block"]) or {}
        assert asked["channels"] == form["channels"]
        assert asked["odd"] == form.get("odd", 0)
        float_type = FP16 if form["graph"] == "float16" else FP32
        reason = explain_missing_block_kernel(index, edge, target, form["block"], float_type)
        if form["channels"] > form["block"]:
            assert (reason is None) == (row.runs == "int4"), (form, reason)


@pytest.mark.parametrize("target", MEASURED, ids=str)
def test_a_measured_layer_lacks_a_kernel_exactly_where_its_row_is_not_int8(target: Target) -> None:
    for row in table(target).int8:
        first = {
            key: value[0] if isinstance(value, list) else value for key, value in row.layer.items()
        }
        if (
            first["operator"]
            in ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool", "MaxPool")
            and "scales" not in first
        ):
            reason = looked_up(first, target)
            assert (reason is None) == (row.runs == "int8"), (first, reason)
            assert reason is None or reason.startswith(f"TensorRT-RTX 1.7.1.116 on sm{target.sm}: ")


def test_on_sm75_convolutions_run_in_float_and_products_are_refused_in_fp32_and_run_in_int8_in_fp16() -> (
    None
):
    sm75 = Target("rtx", 75)

    assert "correlation Float" in (looked_up({"operator": "Conv"}, sm75) or "")
    assert "correlation Half" in (looked_up({"operator": "Conv", "graph": "float16"}, sm75) or "")
    assert "does not build: FP32 GEMM is not supported (nor without Q/DQ)" in (
        looked_up({"operator": "Gemm"}, sm75) or ""
    )
    assert looked_up({"operator": "Gemm", "graph": "float16"}, sm75) is None
    assert looked_up({"operator": "MatMul", "graph": "float16", "batched": "data"}, sm75) is None


def test_fp8_is_refused_on_sm86_and_runs_on_sm89() -> None:
    index = index_of({"operator": "MatMul", "graph": "float16"})
    node_ = index.by_label[LAYER]

    assert "does not build: Cannot compile for target(s) sm86" in (
        explain_missing_kernel(index, node_, Target("rtx", 86), "fp8") or ""
    )
    assert explain_missing_kernel(index, node_, Target("rtx", 89), "fp8") is None


def test_a_number_that_was_not_measured_is_taken_as_the_nearest_lower_one() -> None:
    rows = [
        KernelRow({"operator": "Conv", "channels": [4, 16]}, "int8", "new"),
        KernelRow({"operator": "Conv", "channels": 8}, "float", "old"),
    ]
    for channels, seen in (
        (1, "new"),
        (4, "new"),
        (7, "new"),
        (8, "old"),
        (15, "old"),
        (16, "new"),
        (1000, "new"),
    ):
        assert [
            row.seen for row in find_deciding_rows(rows, {"operator": "Conv", "channels": channels})
        ] == [seen], channels


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("rows", [None, 1, 7, 1000])
def test_a_long_product_is_looked_up_among_those_of_its_block_size(
    block: int, rows: int | None
) -> None:
    form = {"operator": "Gemm", "graph": "float32", "block": block, "channels": 4096, "odd": 0}
    if rows is not None:
        form["rows"] = rows
    deciding = find_deciding_rows(table(Target("rtx", 86)).int4, {**form, "transB": 0})
    assert {row.runs for row in deciding} == {"int4"}


def test_a_row_of_more_keys_speaks_instead_of_one_of_fewer_and_unlike_rows_speak_together() -> None:
    rows = [
        KernelRow({"operator": "Conv"}, "int8", "all"), KernelRow({"operator": "Conv", "kernel": 1}, "float", "point"),
        KernelRow({"operator": "Conv", "kernel": 1, "channels": 4}, "int8", "both"), KernelRow({"operator": "Conv", "stride": 2}, "float", "strided"),
    ]  # fmt: skip

    def spoken(**form: Any) -> set[str]:
        return {row.seen for row in find_deciding_rows(rows, {"operator": "Conv", **form})}

    assert spoken(kernel=3, stride=1) == {"point", "strided"}  # the nearest measured are 1 and 2
    assert spoken(kernel="1x3") == {"all"}
    assert spoken(kernel=1, channels=4) == {"both"}
    assert spoken(kernel=1, channels=4, stride=2) == {"both", "strided"}
    assert spoken() == {"all"}


def test_rows_that_say_the_same_become_one_and_hold_no_form_that_was_not_measured() -> None:
    measured_rows = [
        KernelRow(
            {"operator": "Conv", "kernel": k, "stride": s},
            "int8" if (k, s) != (3, 2) else "float",
            "x",
        )
        for k in (1, 3, 5)
        for s in (1, 2)
    ]
    small = merge_rows(measured_rows)

    assert len(small) == 3
    for row in measured_rows:
        (held,) = (r for r in small if holds(r, row.layer))
        assert held.runs == row.runs
    assert merge_rows(reversed(measured_rows)) != ()


def test_what_a_graph_does_not_say_is_left_out_of_the_form() -> None:
    form = {"operator": "MatMul", "operands": "computed", "batched": "heads"}
    index = index_of(form, dynamic=True)
    result = describe_layer_form(index, index.by_label[LAYER])

    assert result == {
        "operator": "MatMul",
        "graph": "float32",
        "operands": "computed",
        "batched": "heads",
        "outputs": 64,
    }
    assert explain_missing_kernel(index, index.by_label[LAYER], Target("rtx", 86)) is None


def test_a_mean_over_the_plane_is_looked_up_as_a_global_average_pool() -> None:
    index = index_of({"operator": "ReduceMean"})

    assert (describe_layer_form(index, index.by_label[LAYER]) or {})[
        "operator"
    ] == "GlobalAveragePool"


@pytest.mark.parametrize(
    ("asked", "answering"),
    [
        ("trt:sm75", 75),
        ("trt:sm79", 75),
        ("trt:sm86", 80),
        ("trt:sm120", 80),
        ("trt", 80),
        ("rtx:sm86", 86),
    ],
)
def test_a_target_without_a_table_uses_the_nearest_lower_one_and_an_unnamed_gpu_the_highest(
    asked: str, answering: int
) -> None:
    assert table(parse_target(asked)).sm == answering


def test_a_borrowed_table_is_named_in_the_reason_and_in_the_plan() -> None:
    note = "trt:sm86 has no kernel table, so that of trt:sm80 is used"
    reason = looked_up({"operator": "ConvTranspose", "spatial": 3}, Target("trt", 86))
    model = build(
        [node("Conv", ["x", "w"], "y")],
        {"x": [1, 3, 8, 8]},
        ["y"],
        {"w": noise(4, 3, 3, 3)},
        dtype=TensorProto.FLOAT,
    )

    assert f"on sm80 ({note}): runs in FP16" in (reason or "")
    assert qdq.plan(model, targets=[Target("trt", 86)]).notes == (f"{note}.",)
    assert qdq.plan(model, targets=[Target("trt", 80), Target("rtx", 86)]).notes == ()


def test_the_note_stands_in_the_plan_that_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(make_network({"operator": "Conv"}, "none"), path)

    code, text, _ = cli("plan", path, "--target", "trt:sm89")
    assert code == 0
    assert "trt:sm89 has no kernel table, so that of trt:sm80 is used." in text


def test_below_every_table_each_layer_lacks_a_kernel_and_the_reason_names_the_target() -> None:
    assert read_kernel_table(Target("trt", 70)) is None
    assert (
        looked_up({"operator": "Conv"}, Target("trt", 70))
        == "trt:sm70 has no kernel table, nor has a lower SM of trt"
    )


def test_a_form_that_no_documented_row_speaks_of_is_taken_to_have_a_kernel() -> None:
    assert looked_up({"operator": "Conv", "spatial": 1}, Target("trt", 80)) is None


@needs_compiler
def test_probing_again_writes_the_same_file_and_tells_how_far_it_is(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    measured_table = probe(
        Target("rtx", 86), ["GlobalMaxPool"], 2, lambda done, total: steps.append((done, total))
    )
    committed = [
        row for row in table(Target("rtx", 86)).int8 if row.layer["operator"] == "GlobalMaxPool"
    ]

    assert list(measured_table.int8) == committed
    assert (measured_table.networks, steps[-1]) == (26, (26, 26))
    path = tmp_path / "t.yaml"
    code, text, error = cli(
        "probe", "--target", "rtx:sm86", "--operators", "GlobalMaxPool", "-o", path
    )
    assert (code, error) == (0, "")
    assert path.read_text() == table_yaml(measured_table)
    assert "26 networks" in text


def test_the_progress_of_a_probe_counts_each_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        kernel_probe._Builders, "build", lambda self, model, target: Engine(target, "none")
    )
    steps: list[tuple[int, int]] = []
    measured_table = probe(
        Target("rtx", 89), ["MatMul"], 1, lambda done, total: steps.append((done, total))
    )

    assert measured_table.fp8
    assert steps[-1] == (measured_table.networks, measured_table.networks)


@needs_compiler
def test_a_refusal_does_not_spoil_the_builds_after_it_and_keeps_the_words_on_one_line() -> None:
    measured_table = probe(Target("rtx", 75), ["Einsum"])
    by_graph = {row.layer["graph"]: row for row in measured_table.int8}

    assert by_graph["float32"].runs == "refused"
    assert by_graph["float32"].seen == "FP32 GEMM is not supported (nor without Q/DQ)"
    assert by_graph["float16"].runs == "int8"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--target", "rtx:sm86", "--operators", "Convv"], "Did you mean 'Conv'"),
        (["--target", "trt"], "Pass that of the GPU"),
        (["--target", "rtx:sm90"], "TensorRT-RTX compiles for"),
        (
            ["--target", "rtx:sm86", "--target", "rtx:sm80", "-o", "t.yaml"],
            "Pass --output-folder for several",
        ),
        (
            ["--target", "rtx:sm86", "--output-folder", "nowhere"],
            "nowhere: there is no such folder",
        ),
        (["--target", "rtx:sm86", "-o", "nowhere/t.yaml"], "does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_requests_are_refused_in_one_line(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    assert problem in refused(tmp_path, "probe", *arguments)


def test_tensorrt_proper_needs_a_gpu(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    assert "target trt:sm86: TensorRT is not installed. A trt target needs a GPU" in refused(
        tmp_path, "probe", "--target", "trt:sm86", "--operators", "Relu"
    )
