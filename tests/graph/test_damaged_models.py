"""Damage that fuzzing finds: every reader takes the model or refuses it in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qdq
from qdq.errors import ModelError, QdqError
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex
from qdq.quantized.model import QuantizedModel
from qdq.rules.rule_files import rules_path
from tests.support.body_models import branching
from tests.support.cli_runner import run, save
from tests.support.graphs import convolution, node
from tests.support.pair_models import small


def test_an_opset_beyond_32_bits_has_no_definitions(tmp_path: Path) -> None:
    model = convolution()
    model.opset_import[0].version = 1 << 40
    path = save(model, tmp_path / "model.onnx")
    for command in (["check", path], ["diff", path, path], ["plan", path]):
        code, _, error = run(*command)
        assert (code in (0, 1, 2), error.count("\n") <= 1) == (True, True)


def test_an_opset_of_functions_beyond_32_bits_is_no_defect(tmp_path: Path) -> None:
    model = convolution()
    model.graph.node[0].domain = "local"
    function = model.functions.add(name=model.graph.node[0].op_type, domain="local")
    function.input.extend(["a", "b"])
    function.output.append("c")
    function.node.extend([node("Relu", ["a"], "c")])
    function.opset_import.add(domain="", version=1 << 40)
    path = save(model, tmp_path / "model.onnx")
    code, _, error = run("strip", path, "-o", tmp_path / "out.onnx")
    assert code in (0, 2)
    assert error.count("\n") <= 1


def test_two_bodies_of_one_name_at_a_node_are_a_defect() -> None:
    model = branching()
    owner = next(n for n in model.graph.node if n.op_type == "If")
    owner.attribute.add().CopyFrom(owner.attribute[0])
    with pytest.raises(ModelError, match=r"node if \(If\) has '\w+_branch' twice"):
        qdq.load(model)


def test_a_node_of_a_function_that_lacks_an_input_is_a_defect() -> None:
    model = convolution()
    model.graph.node[0].domain = "local"
    model.opset_import.add(domain="local", version=1)
    function = model.functions.add(name=model.graph.node[0].op_type, domain="local")
    function.input.extend(["a", "b", "d"])
    function.output.append("c")
    function.node.extend([node("Conv", ["a", "absent"], "c")])
    function.node[0].input[1] = ""
    function.opset_import.add(domain="", version=model.opset_import[0].version)
    with pytest.raises(ModelError, match="no name for input 1"):
        qdq.plan(model)


def test_an_alias_with_bodies_is_planned_and_checked() -> None:
    model = branching()
    owner = next(n for n in model.graph.node if n.op_type == "If")
    owner.op_type = "Identity"
    assert CompilerView(GraphIndex(qdq.load(model))).by_label[owner.name].bodies
    assert all(placement.edge.node != owner.name for placement in qdq.plan(model).placements)


def test_an_attribute_by_reference_outside_of_a_function_is_a_defect() -> None:
    model = convolution()
    reference = onnx.AttributeProto(name="dilations", type=onnx.AttributeProto.INTS)
    reference.ref_attr_name = "steps"
    model.graph.node[0].attribute.append(reference)
    with pytest.raises(ModelError, match="'dilations' by reference"):
        qdq.plan(model)


def test_a_node_with_bodies_whose_result_another_node_computes_too_is_read() -> None:
    model = small()
    owner = next(n for n in branching().graph.node if n.op_type == "If")
    owner.output[:] = model.graph.node[-1].output
    model.graph.node.insert(1, owner)
    assert QuantizedModel(model).index.by_label


def test_weights_that_became_infinite_are_compared() -> None:
    model = convolution()
    weight = next(t for t in model.graph.initializer if t.dims)
    values = numpy_helper.to_array(weight).copy()
    values.flat[:2] = (np.inf, 1.0)
    other = onnx.ModelProto.FromString(model.SerializeToString())
    replacement = numpy_helper.from_array(values, weight.name)
    next(t for t in other.graph.initializer if t.name == weight.name).CopyFrom(replacement)
    assert len(qdq.diff(other, other).weights) == 0
    assert qdq.diff(model, other).weights[0].largest_change == np.inf


@pytest.mark.parametrize("outputs", [["q"], ["q", "s"], []])
def test_a_dynamic_quantization_without_its_scale_is_no_defect(
    tmp_path: Path, outputs: list[str]
) -> None:
    model = small(x="x_dq")
    model.graph.node.add(
        op_type="DynamicQuantizeLinear", domain="com.microsoft", input=["x"], output=outputs
    )
    path = save(model, tmp_path / "model.onnx")
    code, _, error = run("strip", path, "-o", tmp_path / "out.onnx")
    assert code in (0, 2)
    assert error.count("\n") <= 1


def test_a_name_that_is_too_long_for_a_file_is_no_rule_set() -> None:
    with pytest.raises(QdqError, match="unknown rule set"):
        rules_path("x" * 3000)
