"""The findings of check in models that other tools quantized, against what TensorRT-RTX then does with them as they are."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("onnxruntime.quantization")

import qdq
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.loader import load
from qdq.graph.source import Source
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_index
from qdq.quantized.model import QuantizedModel
from qdq.rules.rule_files import load_rules
from qdq.target import Target
from qdq.validation.engine_report import compare_engines
from tests.support.peers import FILES, STATIC, peer

#: Codes of what the parser refuses.
REFUSED = {
    "zero-point",
    "int32-dequantize",
    "unsupported-operator",
    "unsupported-type",
    "stored-integers",
}
REFUSED |= {f"scale-{what}" for what in ("not-positive", "count", "not-constant", "type")}
#: Codes of weighted layers that run in float.
IN_FLOAT = {
    "half-quantized",
    "missing-pair",
    "no-kernel",
    "channel-scales",
    "wrong-axis",
    "default-axis",
    "unequal-scales",
}
FORMS = [f"{network}/{form}" for network in ("vision", "language", "cnn") for form in STATIC]
PEERS = [
    *FORMS,
    "vision/dynamic",
    *sorted({path.stem for path in FILES.glob("*.onnx")} - {"float", "modelopt_language_int4"}),
]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@pytest.mark.parametrize("name", PEERS)
def test_the_parser_refuses_what_check_says_and_the_compiler_runs_in_float_what_check_says(
    name: str,
) -> None:
    target = Target("rtx", 89) if name.endswith("fp8") else Target("rtx", 86)
    source = load(peer(name))
    findings = qdq.check(source, targets=[target])
    codes, quantized = {f.code for f in findings}, QuantizedModel(source)
    plain = quantized.original is quantized.source
    with Compiler() as compiler:
        engine = compiler.build(Source(None, quantized.labelled(), "") if plain else source, target)
    assert bool(codes & REFUSED) == bool(engine.failure), engine.failure
    if engine.failure or not plain:
        return
    report = compare_engines(quantized, engine, engine, "compiled")
    explained = {f.node for f in findings if f.code in IN_FLOAT}
    rules = load_rules(["tensorrt-fp8"]) if name.endswith("fp8") else load_rules()
    planned = {
        p.edge.node
        for p in plan_index(
            quantized.index, PlanRequest(rules, (target,), allow_unmatched=True)
        ).placements
    }
    wrong = [
        v.node
        for v in report.layers
        if (v.int8 or v.fp8) == (v.node in explained) and (v.node in planned or v.node in explained)
    ]
    assert wrong == []
