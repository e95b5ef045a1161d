"""Errors of outputs, and a run of TensorRT on a GPU, which is skipped where there is none."""

from __future__ import annotations

import importlib.util
import math
import shutil

import pytest

import qdq
from qdq.data.feeds import open_feeds
from qdq.graph.index import GraphIndex
from qdq.runtime.session import open_session
from qdq.validation.accuracy import output_errors
from tests.support.paths import NETWORKS

NETWORK = NETWORKS / "digits_cnn.onnx"
DATA = NETWORK.with_name("digits-calibration.npz")
HAS_TENSORRT = (
    importlib.util.find_spec("tensorrt") is not None and shutil.which("nvidia-smi") is not None
)


@pytest.mark.gpu
@pytest.mark.skipif(
    not HAS_TENSORRT, reason="needs TensorRT (pip install 'qdq[tensorrt]') and a GPU"
)
def test_tensorrt_runs_every_promised_layer_in_int8_on_the_gpu() -> None:
    target = qdq.parse_target("trt")
    quantized = qdq.quantize(NETWORK, DATA, targets=[target])

    (engine,) = qdq.validate(NETWORK, quantized.model, data=DATA, targets=[target]).engines

    assert (engine.kind, engine.failure, engine.broken_promises) == ("measured", "", ())
    assert engine.milliseconds is not None
    assert engine.float_milliseconds is not None
    assert engine.outputs[0].snr_db > 25


def test_outputs_from_elsewhere_are_compared_with_the_float_models() -> None:
    index = GraphIndex(qdq.load(NETWORK))
    feeds = list(open_feeds(index, DATA))[:3]
    computed = [
        dict(zip(index.outputs, open_session(index, []).run(None, feed), strict=True))
        for feed in feeds
    ]
    halved = [{name: values / 2 for name, values in output.items()} for output in computed]

    (same,), (half,) = (output_errors(index, feeds, outputs) for outputs in (computed, halved))

    assert (same.max_abs, same.top1_agreement) == (0.0, 1.0)
    assert half.snr_db == pytest.approx(6.02, abs=0.01)


def test_samples_with_another_shape_are_counted_and_not_compared() -> None:
    index = GraphIndex(qdq.load(NETWORK))
    feeds = list(open_feeds(index, DATA))[:2]
    right = [
        dict(zip(index.outputs, open_session(index, []).run(None, feed), strict=True))
        for feed in feeds
    ]
    shorter = {name: values[:, :-1] for name, values in right[0].items()}

    (partial,), (empty,) = (
        output_errors(index, feeds, outputs)
        for outputs in ([shorter, right[1]], [shorter, shorter])
    )

    assert (partial.shape_mismatches, partial.max_abs, partial.cosine, partial.snr_db) == (
        1,
        0.0,
        1.0,
        math.inf,
    )
    assert empty.shape_mismatches == 2
    assert math.isnan(empty.snr_db)
