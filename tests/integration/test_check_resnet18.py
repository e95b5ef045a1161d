"""ResNet-18 in the three placements of NVIDIA's published INT8 engines: check names the layers at which those engines convert.

The engines are NVIDIA/TensorRT, release/8.4, tools/experimental/trt-engine-explorer/examples/pytorch/resnet/A100; the names
below are those of their layers. All of them begin with a reformat of the graph input, QuantizeLinear_2.
"""

from __future__ import annotations

import onnx
import pytest
from resnet18 import resnet18

import qdq
from qdq.checking.finding import Finding
from qdq.quantized.stripper import strip

#: The ONNX nodes of each fused convolution that reads its residual, or writes, in a float type.
FLOAT_LAYERS = {
    "qat": ("Conv_34 Add_36 Relu_37", "Conv_59 Add_61 Relu_62", "Conv_95 Add_97 Relu_98", "Conv_120 Add_122 Relu_123",
            "Conv_156 Add_158 Relu_159", "Conv_181 Add_183 Relu_184", "Conv_217 Add_219 Relu_220", "Conv_242 Add_244 Relu_245"),
    "qat-residual": ("Conv_284 Add_292 Relu_293",),
    "qat-residual-qgap": (),
}  # fmt: skip
#: What each Reformat layer but that of the graph input is called: a Q or DQ of its own, or the layer that a copy belongs to.
REFORMATS = {
    "qat": ("MaxPool_12", "QuantizeLinear_15", "QuantizeLinear_40", "QuantizeLinear_65", "QuantizeLinear_101", "QuantizeLinear_126", "QuantizeLinear_162",
            "QuantizeLinear_187", "QuantizeLinear_223", "GlobalAveragePool_246", "QuantizeLinear_250"),
    "qat-residual": ("DequantizeLinear_291", "QuantizeLinear_298"),
    "qat-residual-qgap": (),
}  # fmt: skip
#: The findings: the Adds of the layers above whose skip is float, and the pool.
RESIDUALS = {
    "qat": [36, 61, 97, 122, 158, 183, 219, 244],
    "qat-residual": [],
    "qat-residual-qgap": [],
}
POOLS = {
    "qat": ["GlobalAveragePool_246"],
    "qat-residual": ["GlobalAveragePool_294"],
    "qat-residual-qgap": [],
}


@pytest.fixture(scope="module", params=RESIDUALS)
def placement(request: pytest.FixtureRequest) -> tuple[str, onnx.ModelProto, tuple[Finding, ...]]:
    """Return a placement's name, its model and what is found in it."""
    model = resnet18(request.param)
    return request.param, model, qdq.check(model)


def test_the_residual_and_pool_findings_are_at_the_layers_that_the_engine_runs_in_float(
    placement: tuple[str, onnx.ModelProto, tuple[Finding, ...]],
) -> None:
    name, _, findings = placement
    assert [f.node for f in findings if f.code == "residual-in-float"] == [
        f"Add_{i}" for i in RESIDUALS[name]
    ]
    assert [f.node for f in findings if f.code == "pool-in-float"] == POOLS[name]
    assert {f.code for f in findings} <= {"residual-in-float", "pool-in-float"}
    adds = {
        node for layer in FLOAT_LAYERS[name] for node in layer.split() if node.startswith("Add")
    }
    assert {f.node for f in findings if f.code == "residual-in-float"} == (
        adds if name == "qat" else set()
    )


def test_each_reformat_of_the_engine_is_beside_a_finding_and_each_finding_beside_a_reformat(
    placement: tuple[str, onnx.ModelProto, tuple[Finding, ...]],
) -> None:
    name, model, findings = placement
    nodes_near = {finding.where: beside(model, finding) for finding in findings}
    touched = {
        reformat: touches(model, reformat, FLOAT_LAYERS[name]) for reformat in REFORMATS[name]
    }
    assert [
        r for r, nodes in touched.items() if not any(nodes & near for near in nodes_near.values())
    ] == []
    assert [
        where
        for where, near in nodes_near.items()
        if not any(nodes & near for nodes in touched.values())
    ] == []


def beside(model: onnx.ModelProto, finding: Finding) -> set[str]:
    """Return the node of a finding and the one that makes its tensor."""
    makers = {output: node.name for node in strip(model).graph.node for output in node.output}
    return {finding.node, makers[finding.where.partition(" -> ")[0]]}


def touches(model: onnx.ModelProto, reformat: str, float_layers: tuple[str, ...]) -> set[str]:
    """Return the nodes in front of a reformat and behind it, with all that is fused with them."""
    nodes = {node.name: node for node in model.graph.node}
    makers = {output: node for node in model.graph.node for output in node.output}
    node = nodes[reformat]
    near = {reformat}
    before = makers[node.input[0]]
    while before.op_type in ("QuantizeLinear", "Flatten"):
        near.add(before.name)
        before = makers[before.input[0]]
    near |= {before.name} | {
        reader.name for reader in model.graph.node if node.output[0] in reader.input
    }
    return near | {
        fused for layer in float_layers if near & set(layer.split()) for fused in layer.split()
    }


def test_the_best_placement_has_no_finding_at_all() -> None:
    assert qdq.check(resnet18("qat-residual-qgap")) == ()
