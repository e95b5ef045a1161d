"""The classifier that was fine-tuned with fake quantization: repair keeps what was learned and adds what TensorRT wants."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import qdq
from qdq.engines.prediction.predictor import predict_engine
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from qdq.validation.engine_report import EngineReport, compare_engines
from tests.support.cli_runner import run
from tests.support.graphs import CALIBRATION, initializer
from tests.support.paths import NETWORKS

sys.path.insert(0, str(NETWORKS))
import accuracy

QAT = NETWORKS / "digits_qat.onnx"
RTX, TRT = Target("rtx", 86), Target("trt", 80)
RESIDUALS = {
    "/stem/stem.2/Relu_output_0 -> /identity/Add[1]",
    "/projection/skip/skip.1/BatchNormalization_output_0 -> /projection/Add[1]",
}
INPUTS = {
    "/branches/Concat_output_0 -> /branches/merge/merge.0/Conv[0]",
    "/flatten/Flatten_output_0 -> /head/Gemm[0]",
}
POOL = {"/branches/merge/merge.2/Relu_output_0 -> /mean/GlobalAveragePool[0]"}
#: Which layers lack the quantizer of their input.
HALF_QUANTIZED = {"/branches/merge/merge.0/Conv", "/head/Gemm"}
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@pytest.fixture(scope="module")
def repaired() -> dict[str, qdq.Quantized]:
    """The fixture, repaired for each target with the digits it may calibrate on."""
    return {str(t): qdq.quantize(QAT, CALIBRATION, targets=[t]) for t in (RTX, TRT)}


def quantizers(model: onnx.ModelProto | Path) -> dict[str, tuple[list[float], str]]:
    """Return the scales and the type of every quantized edge by its name."""
    return {
        str(q.edge): (np.ravel(q.scales).tolist(), q.dtype)
        for q in QuantizedModel(model).edges
        if q.scales is not None
    }


def without_pairs(model: onnx.ModelProto | Path) -> list[tuple[str, str]]:
    return [(n.op_type, n.output[0]) for n in qdq.strip(model).graph.node]


@pytest.mark.parametrize(
    ("target", "missing"),
    [(RTX, RESIDUALS | INPUTS), (TRT, RESIDUALS | INPUTS | POOL)],
    ids=["rtx", "trt"],
)
def test_what_the_placement_by_layer_lacks_is_found_for_the_target(
    target: Target, missing: set[str]
) -> None:
    assert {f.where for f in qdq.check(QAT, targets=[target])} >= missing
    assert not {f.where for f in qdq.check(QAT, targets=[target])} & (
        (RESIDUALS | INPUTS | POOL) - missing
    )


@pytest.mark.parametrize("target", [RTX, TRT], ids=str)
def test_every_learned_scale_and_weight_stays_and_the_placement_is_complete(
    repaired: dict[str, qdq.Quantized], target: Target
) -> None:
    before, after = quantizers(QAT), quantizers(repaired[str(target)].model)
    assert len(before) == 18
    assert {edge: after.get(edge) for edge in before} == before
    assert after.keys() - before.keys() == RESIDUALS | INPUTS | (POOL if target == TRT else set())
    assert qdq.check(repaired[str(target)].model, targets=[target]) == ()
    qat_model = onnx.load(QAT)
    for weight in (t.name for t in qat_model.graph.initializer if t.name.endswith("layer.weight")):
        np.testing.assert_array_equal(
            initializer(repaired[str(target)].model, weight), initializer(qat_model, weight)
        )
    assert without_pairs(repaired[str(target)].model) == without_pairs(QAT)


def test_a_residual_input_that_another_layer_reads_has_the_scale_learned_there(
    repaired: dict[str, qdq.Quantized],
) -> None:
    scales = quantizers(repaired[str(RTX)].model)
    assert (
        scales["/stem/stem.2/Relu_output_0 -> /identity/Add[1]"]
        == scales["/stem/stem.2/Relu_output_0 -> /identity/first/first.0/Conv[0]"]
    )
    assert (
        scales["/branches/Concat_output_0 -> /branches/merge/merge.0/Conv[0]"]
        == scales["/branches/near/near.2/Relu_output_0 -> /branches/far/far.0/Conv[0]"]
    )


@pytest.mark.parametrize("target", [RTX, TRT], ids=str)
def test_no_accuracy_is_lost_over_the_evaluation_images(
    repaired: dict[str, qdq.Quantized], target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "repaired.onnx"
    onnx.save(repaired[str(target)].model, path)
    assert accuracy.top1(path) >= accuracy.top1(QAT) >= 0.99


def test_the_command_says_what_it_added_and_that_scales_are_the_models_own(tmp_path: Path) -> None:
    code, out, error = run(
        "quantize", QAT, "-o", tmp_path / "q.onnx", "--data", CALIBRATION, "--target", RTX
    )
    assert (code, error) == (0, "")
    assert "4 added" in out
    assert "the model's own quantization gives the ranges of 7 tensors" in out


def compiled(model: onnx.ModelProto | Path, target: Target) -> EngineReport:
    """Return what the engine of a quantized model does."""
    quantized = QuantizedModel(model)
    build = (
        predict_engine
        if target.backend == "trt"
        else importlib.import_module("qdq.engines.rtx_compiler").build_engine
    )
    engine = build(quantized.labelled(), target)
    return compare_engines(
        quantized, engine, engine, "predicted" if target.backend == "trt" else "compiled"
    )


@needs_compiler
def test_the_real_engine_gains_the_layers_that_were_in_float(
    repaired: dict[str, qdq.Quantized],
) -> None:
    before, after = compiled(QAT, RTX), compiled(repaired[str(RTX)].model, RTX)
    assert {v.node for v in before.layers if not v.int8} == HALF_QUANTIZED
    assert {v.node for v in after.layers if not v.int8} == set()
    assert (len(after.layers), after.broken_promises, after.failure) == (10, (), "")


def test_the_predicted_engine_of_tensorrt_proper_fuses_both_residual_adds_and_pools_in_int8(
    repaired: dict[str, qdq.Quantized],
) -> None:
    before, after = (predict_engine(m, TRT) for m in (onnx.load(QAT), repaired[str(TRT)].model))
    followed = [[layer.fusion_rule for layer in engine.layers] for engine in (before, after)]
    assert [rules.count("residual-int8") for rules in followed] == [0, 2]
    assert [rules.count("quantized-pool") for rules in followed] == [0, 1]
    assert after.bytes < before.bytes
