"""ResNet-18: the default rules plan what the fastest of NVIDIA's published INT8 engines of it was built from, and say why.

That engine (NVIDIA/TensorRT, release/8.4, tools/experimental/trt-engine-explorer/examples/pytorch/resnet, qat-residual-qgap)
has pairs on the weights and the input of every convolution and of the classifier, on the skip of every residual Add, and on
the input of the global average pool.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import qdq
from qdq.planning.explanation import Explanation
from tests.support.graphs import build, noise, paired_edges

BLOCKS = (
    "layer1.0",
    "layer1.1",
    "layer2.0",
    "layer2.1",
    "layer3.0",
    "layer3.1",
    "layer4.0",
    "layer4.1",
)
FORMS = ("folded", "normalised", "mean")


class ResNet18:
    """ResNet-18 as torch exports it, an eighth as wide: batch normalisation folded into the convolutions, or left in the graph."""

    def __init__(self, form: str, width: int = 8) -> None:
        self.form = form
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        tensor = self.node(
            "Relu", "relu", [self.convolution("conv1", "input", (width * 2, 3, 7), 2)]
        )
        tensor = self.node(
            "MaxPool", "maxpool", [tensor], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]
        )
        channels = width * 2
        for block in BLOCKS:
            stage = int(block[5])
            tensor = self.block(block, tensor, (channels, width * 2**stage))
            channels = width * 2**stage
        pooled = (
            self.mean(tensor)
            if form == "mean"
            else self.node("GlobalAveragePool", "avgpool", [tensor])
        )
        self.weights |= {"fc.weight": noise(40, channels, seed=3), "fc.bias": noise(40, seed=4)}
        flat = pooled if form == "mean" else self.node("Flatten", "flatten", [pooled])
        self.node("Gemm", "fc", [flat, "fc.weight", "fc.bias"], transB=1)
        self.model = build(self.nodes, {"input": [1, 3, 64, 64]}, ["fc.out"], self.weights)

    def node(self, op: str, name: str, inputs: list[str], **attributes: object) -> str:
        self.nodes.append(
            onnx.helper.make_node(op, inputs, [f"{name}.out"], name=name, **attributes)
        )
        return f"{name}.out"

    def mean(self, tensor: str) -> str:
        return self.node("ReduceMean", "avgpool", [tensor], axes=[2, 3], keepdims=0)

    def convolution(self, name: str, tensor: str, shape: tuple[int, int, int], stride: int) -> str:
        outputs, inputs, window = shape
        self.weights |= {
            f"{name}.weight": noise(outputs, inputs, window, window, seed=len(self.nodes)),
            f"{name}.bias": noise(outputs, seed=1),
        }
        out = self.node(
            "Conv",
            name,
            [tensor, f"{name}.weight", f"{name}.bias"],
            strides=[stride] * 2,
            pads=[window // 2] * 4,
        )
        if self.form != "normalised":
            return out
        statistics = [f"{name}.bn.{part}" for part in ("scale", "shift", "mean", "var")]
        self.weights |= {part: np.abs(noise(outputs, seed=2)) + 0.5 for part in statistics}
        return self.node("BatchNormalization", f"{name}.bn", [out, *statistics])

    def block(self, name: str, tensor: str, channels: tuple[int, int]) -> str:
        input_channels, wide = channels
        stride = 1 if input_channels == wide else 2
        branch = self.node(
            "Relu",
            f"{name}.relu1",
            [self.convolution(f"{name}.conv1", tensor, (wide, input_channels, 3), stride)],
        )
        branch = self.convolution(f"{name}.conv2", branch, (wide, wide, 3), 1)
        skip = (
            tensor
            if stride == 1
            else self.convolution(f"{name}.downsample", tensor, (wide, input_channels, 1), stride)
        )
        return self.node("Relu", f"{name}.relu2", [self.node("Add", f"{name}.add", [branch, skip])])


def expected() -> dict[tuple[str, int], str]:
    """Return the edges that get a pair, each with the rule that asks for it."""
    downsampled = [block for block in BLOCKS if block.endswith(".0") and block != "layer1.0"]
    convolutions = [
        "conv1",
        *(f"{block}.{name}" for block in BLOCKS for name in ("conv1", "conv2")),
        *(f"{block}.downsample" for block in downsampled),
    ]
    weighted = [*convolutions, "fc"]
    return {
        **{(name, 0): "weighted-inputs" for name in weighted},
        **{(name, 1): "weights-per-channel" for name in weighted},
        **{(f"{block}.add", 1): "residual-inputs" for block in BLOCKS},
        ("avgpool", 0): "pooling-inputs",
    }


def test_the_generated_network_is_resnet18() -> None:
    ops = [n.op_type for n in ResNet18("folded").model.graph.node]
    assert {op: ops.count(op) for op in set(ops)} == {
        "Conv": 20, "Relu": 17, "MaxPool": 1, "Add": 8, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_the_default_rules_plan_what_the_fastest_published_engine_has_and_nothing_else(
    form: str,
) -> None:
    plan = qdq.plan(ResNet18(form).model)
    assert {(p.edge.node, p.edge.slot): p.because for p in plan.placements} == {
        edge: (rule,) for edge, rule in expected().items()
    }
    assert {
        p.quantizer.axis
        for p in plan.placements
        if p.edge.slot == 1 and not p.edge.node.endswith("add")
    } == {0}


@pytest.mark.parametrize("form", FORMS)
def test_the_written_pairs_are_the_planned_ones_and_shared_by_their_readers(form: str) -> None:
    before = ResNet18(form).model
    after = qdq.quantize(before, "noise", method="max").model
    assert paired_edges(before, after) == {(f"{name}.out", slot) for name, slot in expected()}
    activations = {
        next(n.input[slot] for n in before.graph.node if n.name == name)
        for name, slot in expected()
    } - set(_weights(before))
    pairs = [n.op_type for n in after.graph.node].count("QuantizeLinear")
    assert pairs == len(activations) + 21


@pytest.fixture(scope="module")
def explained() -> dict[tuple[str, int], Explanation]:
    """Return why each edge into a planned node is as it is."""
    model = ResNet18("folded").model
    plan, rules = qdq.plan(model), qdq.load_rules()
    names = dict.fromkeys(name for name, _ in expected())
    return {
        (e.edge.node, e.edge.slot): e
        for name in names
        for e in qdq.explain(model, plan, rules, name)
    }


def test_explain_gives_each_pair_its_rule_with_reason_and_source(
    explained: dict[tuple[str, int], Explanation],
) -> None:
    for edge, rule in expected().items():
        explanation = explained[edge]
        assert explanation.decision.startswith(
            "quantize (int8-weight-per-channel"
            if edge[1] == 1 and "add" not in edge[0]
            else "quantize (int8-activation"
        )
        assert explanation.rule == rule
        assert (
            min(
                map(
                    len,
                    (explanation.says, explanation.because, explanation.see, explanation.evidence),
                )
            )
            > 20
        )


def test_explain_says_why_the_convolution_s_side_of_each_add_stays_in_float(
    explained: dict[tuple[str, int], Explanation],
) -> None:
    for block in BLOCKS:
        explanation = explained[f"{block}.add", 0]
        assert (explanation.edge.tensor, explanation.decision, explanation.rule) == (
            f"{block}.conv2.out",
            "leave in float",
            "no-weighted-outputs",
        )


def _weights(model: onnx.ModelProto) -> list[str]:
    return [t.name for t in model.graph.initializer]
