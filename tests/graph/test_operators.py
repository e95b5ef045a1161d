"""The shared lists of operators: plan and check agree on every operator in them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper

import qdq
from qdq.checking.checker import compare_with_plan
from qdq.graph.operators import (
    ACTIVATIONS_BEFORE_RESIDUAL,
    FOLDED_INTO_WEIGHTS,
    FUSED_AFTER_WEIGHTED,
    MOVES_VALUES,
    QUANTIZABLE_POOLS,
)
from qdq.quantized.stripper import strip
from qdq.testing.case_files import parse_case

Model = onnx.ModelProto

#: Operators with their inputs and attributes, applied to a tensor `t`; others are unary.
FORMS = {
    "AveragePool": "AveragePool <kernel_shape = [2, 2]> (t)",
    "MaxPool": "MaxPool <kernel_shape = [2, 2]> (t)",
    "ReduceMean": "ReduceMean <axes = [2, 3]> (t)",
    "Clip": "Clip (t, low, high)",
    "PRelu": "PRelu (t, factor)",
    "BatchNormalization": "BatchNormalization (t, ones, ones, ones, ones)",
    "Add": "Add (t, factor)",
    "Sum": "Sum (t, factor)",
    "Max": "Max (t, factor)",
    "Min": "Min (t, factor)",
    "Sub": "Sub (t, factor)",
    "Mul": "Mul (t, factor)",
    "Div": "Div (t, factor)",
    "Reshape": "Reshape (t, sizes)",
    "Squeeze": "Squeeze (t, first)",
    "Transpose": "Transpose <perm = [0, 2, 1]> (t)",
    "Unsqueeze": "Unsqueeze (t, first)",
}

CONSTANTS = (
    "float[4,4,1,1] w, float[4,4,1,1] v, float low = {0.0}, float high = {6.0}, "
    "float[4,1,1] factor = {0.5, 1.0, 1.5, 2.0}, float[4] ones = {1.0, 1.0, 1.0, 1.0}, "
    "int64[2] sizes = {6, 4}, int64[1] first = {0}"
)

#: Columns of the matrix that an operator makes of float[1,6,4], where these are not 4.
COLUMNS = {"Flatten": 24, "Transpose": 6}


def parse(nodes: str, inputs: str, outputs: str, weights: str = CONSTANTS) -> Model:
    """Return the model of an ONNX text of opset 17."""
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    return parse_case(f"{header} g ({inputs}) => ({outputs}) <{weights}> {{ {nodes} }}")


def apply_operator(operator: str, tensor: str) -> str:
    """Return the ONNX text of an operator that reads a tensor."""
    form = FORMS.get(operator, f"{operator} (t)")
    return form.replace("(t", f"({tensor}")


def pooled(operator: str) -> Model:
    """Return a pool before a Conv, beside a Conv that reads the same tensor."""
    nodes = (
        f"[relu] h = Relu (x) [pool] p = {apply_operator(operator, 'h')} "
        "[after] y = Conv (p, w) [beside] z = Conv (h, v)"
    )
    return parse(nodes, "float[1,4,4,4] x", "float[1,4,M,N] y, float[1,4,4,4] z")


def residual(operator: str) -> Model:
    """Return an operator between a Conv and its residual Add."""
    nodes = (
        f"[conv] c = Conv (x, w) [it] a = {apply_operator(operator, 'c')} "
        "[join] j = Add (a, x) [relu] r = Relu (j) [after] y = Conv (r, v)"
    )
    return parse(nodes, "float[1,4,4,4] x", "float[1,4,4,4] y")


def folded(operator: str) -> Model:
    """Return an operator with constant operands between a Conv and another one."""
    nodes = (
        f"[conv] c = Conv (x, w) [it] a = {apply_operator(operator, 'c')} [after] y = Conv (a, v)"
    )
    return parse(nodes, "float[1,4,4,4] x", "float[1,4,4,4] y")


def moved(operator: str) -> Model:
    """Return an operator before a MatMul."""
    nodes = f"[it] m = {apply_operator(operator, 'x')} [after] y = MatMul (m, matrix)"
    weights = f"float[{COLUMNS.get(operator, 4)},5] matrix, {CONSTANTS}"
    return parse(nodes, "float[1,6,4] x", "float y", weights)


def quantized(model: Model) -> Model:
    """Return the model quantized; assert that check finds nothing in it, and each planned pair missing without them."""
    result = qdq.quantize(model, "noise")
    planned = {placement.edge for placement in qdq.plan(model).placements}
    assert planned == {placement.edge for placement in result.plan.placements}
    assert qdq.check(result.model) == ()
    assert compare_with_plan(result.model).missing == ()
    missing = compare_with_plan(strip(result.model)).missing
    assert len(missing) == len(planned)
    assert {placement.edge for placement in missing} == planned
    return result.model


def planned_edges(model: Model) -> set[str]:
    """Return the planned edges as they are printed."""
    return {str(placement.edge) for placement in qdq.plan(model).placements}


def find_node(model: Model, name: str) -> NodeProto:
    """Return the node of a name."""
    return next(node for node in model.graph.node if node.name == name)


def remove_pair(model: Model, name: str, slot: int) -> None:
    """Let an input slot read the tensor before its Q/DQ pair."""
    producers = {output: node for node in model.graph.node for output in node.output}
    node = find_node(model, name)
    dq = producers[node.input[slot]]
    q = producers[dq.input[0]]
    assert (q.op_type, dq.op_type) == ("QuantizeLinear", "DequantizeLinear")
    node.input[slot] = q.input[0]


def add_pair(model: Model, name: str, slot: int) -> None:
    """Insert a Q/DQ pair of scale 0.1 on an input slot."""
    node = find_node(model, name)
    position = list(model.graph.node).index(node)
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "added_scale")
    zero_point = numpy_helper.from_array(np.array(0, np.int8), "added_zero_point")
    model.graph.initializer.extend([scale, zero_point])
    parameters = [scale.name, zero_point.name]
    tensor = node.input[slot]
    node.input[slot] = "added_float"
    q = helper.make_node("QuantizeLinear", [tensor, *parameters], ["added_int8"])
    dq = helper.make_node("DequantizeLinear", ["added_int8", *parameters], ["added_float"])
    model.graph.node.insert(position, dq)
    model.graph.node.insert(position, q)


def move_pair_before(model: Model, name: str, reader: str) -> None:
    """Move the pair between a node and its reader to the node's first input."""
    node = find_node(model, name)
    producers = {output: other for other in model.graph.node for output in other.output}
    dq = producers[find_node(model, reader).input[0]]
    q = producers[dq.input[0]]
    remove_pair(model, reader, 0)
    q.input[0] = node.input[0]
    node.input[0] = dq.output[0]
    others = [other for other in model.graph.node if other not in (q, dq)]
    ordered = [NodeProto.FromString(item.SerializeToString()) for item in (q, dq, *others)]
    del model.graph.node[:]
    model.graph.node.extend(ordered)


def list_findings(model: Model) -> list[tuple[str, str]]:
    """Return the codes and places of the findings of check."""
    return [(finding.code, finding.where) for finding in qdq.check(model)]


@pytest.mark.parametrize("operator", QUANTIZABLE_POOLS)
def test_the_input_of_each_quantizable_pool_is_planned_and_missed(operator: str) -> None:
    model = pooled(operator)
    assert "h -> pool[0]" in planned_edges(model)
    after = quantized(model)
    remove_pair(after, "pool", 0)
    assert list_findings(after) == [("pool-in-float", "h -> pool[0]")]


@pytest.mark.parametrize("operator", [*ACTIVATIONS_BEFORE_RESIDUAL, *FOLDED_INTO_WEIGHTS])
def test_the_skip_of_an_add_after_each_operator_is_planned_and_missed(operator: str) -> None:
    model = residual(operator)
    assert "x -> join[1]" in planned_edges(model)
    after = quantized(model)
    remove_pair(after, "join", 1)
    assert list_findings(after) == [("residual-in-float", "x -> join[1]")]


def test_the_skip_of_an_add_after_another_operator_stays_in_float() -> None:
    model = residual("Softmax")
    assert "x -> join[1]" not in planned_edges(model)
    quantized(model)


@pytest.mark.parametrize("operator", [*FOLDED_INTO_WEIGHTS, *FUSED_AFTER_WEIGHTED])
def test_a_pair_before_each_operator_that_is_fused_with_a_layer_is_unwanted(operator: str) -> None:
    model = folded(operator)
    assert "c -> it[0]" not in planned_edges(model)
    after = quantized(model)
    add_pair(after, "it", 0)
    assert list_findings(after) == [("pair-in-fusion", "c -> it[0]")]


@pytest.mark.parametrize("operator", FOLDED_INTO_WEIGHTS)
def test_a_pair_after_each_folded_operator_is_on_the_output_of_the_layer(operator: str) -> None:
    nodes = (
        f"[conv] c = Conv (x, w) [it] a = {apply_operator(operator, 'c')} [last] y = Softmax (a)"
    )
    after = quantized(parse(nodes, "float[1,4,4,4] x", "float[1,4,4,4] y"))
    add_pair(after, "last", 0)
    assert list_findings(after) == [("pair-on-output", "a -> last[0]")]


@pytest.mark.parametrize("operator", MOVES_VALUES)
def test_a_pair_before_each_operator_that_moves_values_counts_as_one_after_it(
    operator: str,
) -> None:
    model = moved(operator)
    assert "m -> after[0]" in planned_edges(model)
    after = quantized(model)
    move_pair_before(after, "it", "after")
    assert [str(placement.edge) for placement in compare_with_plan(after).missing] == [
        "m -> after[0]"
    ]
    assert list_findings(after) == []
    remove_pair(after, "it", 0)
    assert list_findings(after) == [("half-quantized", "m -> after[0]")]


def test_a_pair_before_an_operator_that_computes_does_not_count_as_one_after_it() -> None:
    after = quantized(moved("Tanh"))
    move_pair_before(after, "it", "after")
    assert ("half-quantized", "m -> after[0]") in list_findings(after)
