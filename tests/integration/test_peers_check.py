"""What check finds in models that other tools quantized, against what TensorRT-RTX's parser and compiler say of them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime.quantization")

from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.engines.engine import Engine
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.bodies import node_labels
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE, is_quantized_operator
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from qdq.validation.engine_report import compare_engines
from tests.support.graphs import Array, value
from tests.support.peers import FILES, STATIC, peer

RTX = Target("rtx", 86)
#: What the parser says to each finding that stops it; a weight that is stored as UINT8 is named for its type or its zero point.
REFUSALS = {
    "zero-point": ("Non-zero zero point is not supported", "unsupported input type of UINT8"),
    "int32-dequantize": ("input has type Int32",),
    "scale-not-positive": ("must all be positive",),
    "unsupported-type": ("Failed to import initializer", "unsupported input type of UINT8"),
    "stored-integers": ("is only allowed before DQ",),
    "unsupported-operator": (
        "it has no plugin for",
        "checkQLinearMatMul",
        "checkMatMulInteger",
        "checkConvInteger",
        "checkQLinearConv",
        "checkDynamicQuantizeLinear",
    ),
}
#: Findings that keep a weighted layer from INT8.
FLOATS = {
    "half-quantized",
    "missing-pair",
    "channel-scales",
    "wrong-axis",
    "no-kernel",
    "scale-not-positive",
}
PEERS = [
    *(f"vision/{form}" for form in STATIC),
    *(
        f"language/{form}"
        for form in ("qdq-symmetric", "qdq-pairs-on-weights", "qdq-for-tensorrt", "qoperator")
    ),
    *(f"{network}/dynamic" for network in ("vision", "language")),
    *sorted(
        path.stem
        for path in FILES.glob("*.onnx")
        if path.stem != "float" and not path.stem.endswith("fp8")
    ),
]
#: Those that the compiler takes as they are, but for weights in INT4, which no rule is about.
TAKEN = (
    *(
        "vision/qdq-for-tensorrt",
        "language/qdq-for-tensorrt",
        "torch_script",
        "torch_script_opset13",
        "torch_dynamo",
        "brevitas_dynamo",
    ),
    *("nncf_cnn", "nncf_language", "modelopt_cnn_fp16", "modelopt_vision_dq"),
)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@functools.cache
def findings(name: str) -> tuple[qdq.Finding, ...]:
    return qdq.check(peer(name), targets=[RTX])


class Judge:
    """The compiler, which is asked about each model once."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._engines: dict[bytes, Engine] = {}

    def engine(self, model: onnx.ModelProto) -> Engine:
        key = model.SerializeToString()
        if key not in self._engines:
            self._engines[key] = self._compiler.build(model, RTX)
        return self._engines[key]

    def refusal(self, model: onnx.ModelProto) -> str:
        """Return the compiler's message where it refuses a model, else ""."""
        return self.engine(model).failure


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Compiler() as compiler:
        yield Judge(compiler)


@pytest.mark.parametrize("name", PEERS)
def test_the_compiler_refuses_a_peer_if_and_only_if_check_finds_what_the_compiler_names(
    name: str, judge: Judge
) -> None:
    refusal = judge.refusal(peer(name))
    codes = {f.code for f in findings(name)} & REFUSALS.keys()
    assert bool(refusal) == bool(codes), (refusal, codes)
    assert not refusal or any(message in refusal for code in codes for message in REFUSALS[code]), (
        refusal,
        codes,
    )


class Pieces:
    """The Q, DQ and quantized operators of a model, each as a model of its own."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        #: What the DQ gives that an edge of the float graph reads.
        self.outputs = {str(q.edge): q.pair.output for q in QuantizedModel(model).edges}
        self.opset = max(o.version for o in model.opset_import if not o.domain)
        self.domains = {o.domain: o.version for o in model.opset_import if o.domain}
        self.labels = dict(zip(node_labels(graph), graph.node, strict=True))
        self.producers = {output: node for node in graph.node for output in node.output}
        index = GraphIndex(load(model))
        read = {
            n
            for node in graph.node
            if node.op_type in (QUANTIZE, DEQUANTIZE) or is_quantized_operator(node)
            for n in node.input
            if n and index.is_constant(n)
        }
        computed = {
            o
            for node in graph.node
            if node.op_type in (QUANTIZE, DEQUANTIZE, "Clip")
            for o in node.output
        }
        self.stored: dict[str, Array] = {name: index.constant(name) for name in read - computed}

    def chains(self) -> Iterator[tuple[str, list[onnx.NodeProto]]]:
        """Yield each DQ with the Q before it or of a stored tensor, by its output, and each quantized operator by its label."""
        for label, node in self.labels.items():
            before = self.producers.get(node.input[0]) if node.input else None
            if node.op_type == DEQUANTIZE and before is not None and before.op_type == QUANTIZE:
                yield node.output[0], [before, node]
            elif node.op_type == DEQUANTIZE and node.input[0] in self.stored:
                yield node.output[0], [node]
            elif is_quantized_operator(node):
                yield label, [node]

    def named(self, finding: qdq.Finding) -> Iterator[str]:
        """Yield what `chains` calls the nodes that a finding is about: those of an edge, or of a label."""
        tensor, arrow, _ = finding.where.partition(" -> ")
        node = self.labels.get(finding.where)
        if arrow or node is None:
            yield self.outputs.get(finding.where, tensor)
        elif node.op_type == QUANTIZE:
            yield from (
                n.output[0]
                for n in self.labels.values()
                if n.op_type == DEQUANTIZE and n.input[0] == node.output[0]
            )
        else:
            yield node.output[0] if node.op_type == DEQUANTIZE else finding.where

    def alone(self, chain: list[onnx.NodeProto]) -> onnx.ModelProto:
        """Return a model of some nodes under plain names, whose computed inputs are graph inputs, and whose values do not matter."""
        names: dict[str, str] = {"": ""}
        nodes, inputs, constants = [], [], {}
        for i, original in enumerate(chain):
            node = onnx.NodeProto()
            node.CopyFrom(original)
            node.name = f"node{i}"
            for slot, name in enumerate(original.input):
                if name not in names:
                    names[name] = f"t{len(names)}"
                    if name in self.stored:
                        constants[names[name]] = plain(self.stored[name], scale=slot == 1)
                    else:
                        inputs.append(
                            value(names[name], self._shape(original), self._type(original, slot))
                        )
                node.input[slot] = names[name]
            for slot, name in enumerate(original.output):
                names[name] = node.output[slot] = f"t{len(names)}"
            nodes.append(node)
        graph = helper.make_graph(
            nodes,
            "piece",
            inputs,
            [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
            [numpy_helper.from_array(v, k) for k, v in constants.items()],
        )
        opsets = [
            helper.make_opsetid("", self.opset),
            *(helper.make_opsetid(d, v) for d, v in self.domains.items()),
        ]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _type(self, node: onnx.NodeProto, slot: int) -> int:
        if node.op_type == QUANTIZE:
            return (
                TensorProto.FLOAT16
                if self.stored[node.input[1]].dtype == np.float16
                else TensorProto.FLOAT
            )
        zeros = [
            self.stored[name]
            for name in node.input[slot:]
            if name in self.stored and self.stored[name].dtype in (np.int8, np.uint8)
        ]
        return helper.np_dtype_to_tensor_dtype(zeros[0].dtype) if zeros else TensorProto.UINT8

    def _shape(self, node: onnx.NodeProto) -> list[int]:
        """Return a shape that the scales of a node fit."""
        shape, scale = [2, 2, 2, 2], self.stored.get(node.input[1]) if len(node.input) > 1 else None
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if (
            scale is not None
            and scale.ndim == 1
            and scale.size > 1
            and node.op_type in (QUANTIZE, DEQUANTIZE)
        ):
            shape[axis] = scale.size
        return shape


def plain(array: Array, scale: bool) -> Array:
    """Return an array of the same shape and type, and of one value where the compiler looks at no other: a positive scale, any other number."""
    if scale:
        return np.where(array > 0, np.float32(0.5), array).astype(array.dtype)
    return array if array.size == 1 or not array.any() else np.ones_like(array)


@pytest.mark.parametrize("name", PEERS)
def test_each_node_that_check_says_is_refused_is_refused_alone_and_the_rest_is_not(
    name: str, judge: Judge
) -> None:
    pieces = Pieces(peer(name))
    codes_by_node: dict[str, set[str]] = {}
    for finding in findings(name):
        if finding.code in REFUSALS:
            for node in pieces.named(finding):
                codes_by_node.setdefault(node, set()).add(finding.code)
    chains = dict(pieces.chains())
    for node, chain in chains.items():
        refusal = judge.refusal(pieces.alone(chain))
        assert bool(refusal) == (node in codes_by_node), (node, refusal)
        assert not refusal or any(
            message in refusal for code in codes_by_node[node] for message in REFUSALS[code]
        ), (
            node,
            refusal,
            codes_by_node[node],
        )


@pytest.mark.parametrize("name", TAKEN)
def test_a_weighted_layer_of_a_peer_that_builds_runs_in_float_if_and_only_if_check_says_why(
    name: str, judge: Judge
) -> None:
    quantized = QuantizedModel(peer(name))
    engine = judge.engine(quantized.labelled())
    layers = compare_engines(quantized, engine, engine, "compiled").layers
    assert layers
    floats = {v.node for v in layers if not v.int8}
    assert floats == {f.node for f in findings(name) if f.code in FLOATS} & {v.node for v in layers}
