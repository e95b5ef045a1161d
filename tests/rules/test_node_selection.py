"""Nodes that --leave-float, --keep-fp32 and explain select."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import ModelProto, parser

import qdq
from qdq.errors import QdqError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.rules.node_selection import exact_glob, list_selected, make_where, split_literal_globs
from tests.support.cli_runner import refused, run, save


def chain() -> ModelProto:
    """Return three products with a Relu and a Sigmoid between them."""
    model = parser.parse_model("""
    <ir_version: 10, opset_import: ["": 21]>
    g (float[2,4] x) => (float[2,4] y)
    <float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
    { [first] a = MatMul (x, w)
      [relu] b = Relu (a)
      [second] c = MatMul (b, w)
      [sigmoid] d = Sigmoid (c)
      [third] y = MatMul (d, w) }
    """)
    model.graph.node[-1].name = "third[0]"
    return model


def select(text: str) -> list[str]:
    index = GraphIndex(load(chain()))
    where = make_where(index, text, "--leave-float", allow_unmatched=False)
    return [node.label for _, node in list_selected(index, where)]


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("f*", ["first"]),
        ("op:Relu", ["relu"]),
        ("op:*M*", ["first", "second", "third[0]"]),
        ("range:relu..sigmoid", ["relu", "second", "sigmoid"]),
        ("range:second..second", ["second"]),
        ("range:sigmoid..third[0]", ["sigmoid", "third[0]"]),
    ],
)
def test_a_text_selects_nodes_in_graph_order(text: str, labels: list[str]) -> None:
    assert select(text) == labels


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("op:Rleu", "no node is a 'Rleu'. Did you mean 'Relu'?"),
        ("range:relu", "the range has no two ends. Write range:FIRST..LAST."),
        ("range:relu..", "the range has no two ends"),
        ("range:sigmoid..relu", "'sigmoid' comes after 'relu'. Swap them."),
        ("range:relu..sigmiod", "no node is named 'sigmiod'. Did you mean 'sigmoid'?"),
    ],
)
def test_a_text_that_selects_nothing_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(QdqError) as error:
        qdq.plan(chain(), leave_float=text)
    assert problem in str(error.value)
    assert text in str(error.value)


def test_an_unmatched_operator_may_be_allowed() -> None:
    decided = qdq.plan(chain(), leave_float="op:Conv", allow_unmatched=True)

    assert len({p.edge.node for p in decided.placements}) == 3
    assert decided.leave_float == ("op:Conv",)


def test_the_plan_leaves_selected_nodes_in_float() -> None:
    decided = qdq.plan(chain(), leave_float=["range:relu..second", "op:Sig*"])

    quantized = {p.edge.node for p in decided.placements}
    assert quantized == {"first", "third[0]"}
    reasons = {
        item.because: item.reason for item in decided.left_float if item.edge.node == "second"
    }
    assert reasons["--leave-float range:relu..second"].endswith("the nodes from relu to second.")


def test_check_accepts_what_the_model_records(tmp_path: Path) -> None:
    model = save(chain(), tmp_path / "m.onnx")
    options = ("--data", "noise", "--leave-float", "range:relu..second")
    run("quantize", model, "-o", tmp_path / "q.onnx", *options)

    code, output, _ = run("check", tmp_path / "q.onnx")

    assert (code, "no findings" in output) == (0, True)


def test_cast_keeps_selected_nodes_in_fp32() -> None:
    result = qdq.cast(chain(), keep_fp32=["op:Sigmoid", "range:first..relu"])

    by_option = [node.node for node in result.plan.kept if node.because.startswith("--keep-fp32")]
    assert by_option == ["first", "relu", "sigmoid"]
    with pytest.raises(QdqError, match="--keep-fp32 op:Softmax: no node is a 'Softmax'"):
        qdq.cast(chain(), keep_fp32="op:Softmax")


def test_explain_takes_globs_operators_and_ranges(tmp_path: Path) -> None:
    model = save(chain(), tmp_path / "m.onnx")

    code, output, _ = run("explain", model, "op:MatMul")

    assert code == 0
    assert output.count("quantize (int8-activation)") == 3
    assert "no node is a 'Gemm'" in refused(tmp_path, "explain", model, "op:Gemm")
    assert "has no node or tensor 'firs?t*'" in refused(tmp_path, "explain", model, "firs?t*")


def test_explain_reads_a_quantized_model_by_its_recorded_rules(tmp_path: Path) -> None:
    model = save(chain(), tmp_path / "m.onnx")
    options = ("--data", "noise", "--leave-float", "second")
    run("quantize", model, "-o", tmp_path / "q.onnx", *options)

    code, output, _ = run("explain", tmp_path / "q.onnx", "*")

    assert code == 0
    assert "leave in float: --leave-float second" in output
    assert "x -> first[0]\n  quantize (int8-activation): weighted-inputs" in output


def test_names_are_separated_from_globs() -> None:
    assert split_literal_globs(["a", "b*", "c[1]"]) == (frozenset({"a"}), ("b*", "c[1]"))
    assert exact_glob("a[0]*") == "a[[]0][*]"
