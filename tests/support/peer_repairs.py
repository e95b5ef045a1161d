"""Repairing the peers, and what comes of it."""

from __future__ import annotations

import functools

import numpy as np
import onnx

import qdq
from qdq.engines.rtx_compiler import Compiler
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from qdq.validation.engine_report import EngineReport, compare_engines
from tests.support.graphs import run
from tests.support.peers import FILES, STATIC, feeds, network, network_of, peer

RTX, ADA = Target("rtx", 86), Target("rtx", 89)


#: Networks of random weights, judged by the noise of their output.
ORT = [
    f"{family}/{form}"
    for family in ("vision", "language")
    for form in STATIC
    if form != "qdq-int16"
]


#: Trained ones, judged by the images that they label correctly.
TRAINED = [
    f"{family}/{form}"
    for family in ("cnn", "attention")
    for form in ("qdq", "qdq-per-channel", "qoperator-per-channel", "qdq-for-tensorrt", "dynamic")
]


WRITTEN = sorted({path.stem for path in FILES.glob("*.onnx")} - {"float"})


PEERS = [*ORT, "vision/dynamic", "vision/dynamic-per-channel", *TRAINED, *WRITTEN]


def target_of(name: str) -> Target:
    return ADA if name.endswith("fp8") else RTX


@functools.cache
def repaired(name: str) -> qdq.Quantized:
    """Return a peer as `qdq quantize --existing repair` makes it, calibrated on what the peer was."""
    data = [dict(feed) for feed in feeds(network(network_of(name)))]
    return qdq.quantize(peer(name), data, targets=[target_of(name)], existing="repair")


def compiled(model: onnx.ModelProto, target: Target, compiler: Compiler) -> EngineReport:
    """Return what the engine of a quantized model does."""
    quantized = QuantizedModel(model)
    engine = compiler.build(quantized.labelled(), target)
    return compare_engines(quantized, engine, engine, "compiled")


def snr(name: str, model: onnx.ModelProto) -> float:
    """Return the signal-to-noise ratio of a model's output against its float network's, in dB, over inputs that nothing was calibrated on."""
    float_model = network(network_of(name))
    test = feeds(float_model, seed=6)
    exact, got = (
        np.concatenate([run(m, f)[0].ravel() for f in test]).astype(np.float64)
        for m in (float_model, model)
    )
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - got) ** 2)))
