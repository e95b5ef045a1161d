"""Models that other tools quantized: what TensorRT-RTX makes of them, and of what qdq repairs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime.quantization")

import qdq
from qdq.engines.rtx_compiler import Compiler
from qdq.pipeline.fixer import Fixed, fix
from qdq.quantized.model import QuantizedModel
from qdq.target import Target
from tests.support.cli_runner import refused, save
from tests.support.graphs import Array, run
from tests.support.paths import NETWORKS
from tests.support.peer_repairs import (
    PEERS,
    RTX,
    TRAINED,
    compiled,
    repaired,
    snr,
    target_of,
)
from tests.support.peers import feeds, network, network_of, peer

#: How many dB a repaired model may lose, and one whose pairs were not symmetric: a tensor that was stored from 0 to 255 loses one bit of eight.
DECIBELS, SHIFTED_DECIBELS = 1.0, 2.5
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    with Compiler() as running:
        yield running


def samples(name: str, folder: Path) -> Path:
    """Write what a network is calibrated on into a folder."""
    for i, feed in enumerate(feeds(network(network_of(name)))):
        np.savez(folder / f"{i}.npz", **feed)
    return folder


@functools.cache
def anew(name: str, target: Target) -> qdq.Quantized:
    """Return a float network as qdq quantizes it."""
    return qdq.quantize(
        network(name), [dict(feed) for feed in feeds(network(name))], targets=[target]
    )


@needs_compiler
@pytest.mark.parametrize("name", PEERS)
def test_a_repaired_peer_builds_with_every_promised_layer_in_its_type(
    name: str, compiler: Compiler
) -> None:
    result = repaired(name)
    onnx.checker.check_model(result.model, full_check=True)
    assert result.findings == ()
    report = compiled(result.model, target_of(name), compiler)
    assert (report.failure, report.broken_promises) == ("", ())
    planned = {p.edge.node for p in result.plan.placements}
    assert (
        sum(v.promised for v in report.layers)
        >= len([v for v in report.layers if v.node in planned])
        > 0
    )


@pytest.mark.parametrize("name", [n for n in PEERS if n not in TRAINED])
def test_a_repaired_peer_is_as_near_to_its_float_network_as_before_or_as_one_quantized_anew(
    name: str,
) -> None:
    assert snr(name, repaired(name).model) >= least_snr(name)


@functools.cache
def least_snr(name: str) -> float:
    """Return what a peer has, or its network quantized anew where that is less, minus what symmetric INT8 may cost."""
    least = min(snr(name, peer(name)), snr(name, anew(network_of(name), target_of(name)).model))
    return least - (DECIBELS if is_symmetric(peer(name)) else SHIFTED_DECIBELS)


def is_symmetric(model: onnx.ModelProto) -> bool:
    """Return whether every pair of a quantized model that says its type stores signed integers around zero."""
    edges = QuantizedModel(model).edges
    return all(
        q.zero_points is None or (q.dtype != "uint8" and not q.zero_points.any()) for q in edges
    )


@functools.cache
def evaluation() -> tuple[Array, Array]:
    with np.load(NETWORKS / "digits-evaluation.npz") as data:
        return data["image"], data["label"]


def top1(model: onnx.ModelProto) -> float:
    images, labels = evaluation()
    return float(np.mean(run(model, {"image": images})[0].argmax(1) == labels))


@pytest.mark.parametrize("name", TRAINED)
def test_a_repaired_peer_labels_as_many_digits_correctly_as_before(name: str) -> None:
    assert top1(repaired(name).model) >= top1(peer(name))


@functools.cache
def fixed(name: str) -> Fixed:
    """Return a peer as `qdq check --fix` makes it, without data."""
    result = fix(peer(name), targets=[target_of(name)])
    assert result is not None
    return result


@needs_compiler
@pytest.mark.parametrize("name", PEERS)
def test_a_fixed_peer_builds_with_every_promised_layer_in_its_type_and_has_no_errors_left(
    name: str, compiler: Compiler
) -> None:
    model = fixed(name).model
    onnx.checker.check_model(model, full_check=True)
    assert not [f for f in qdq.check(model, targets=[target_of(name)]) if f.severity == "error"]
    report = compiled(model, target_of(name), compiler)
    assert (report.failure, report.broken_promises) == ("", ())


@pytest.mark.parametrize(
    "name", [n for n in PEERS if n not in TRAINED and "dynamic" not in n.partition("/")[2]]
)
def test_a_fixed_peer_is_as_near_to_its_float_network_as_before_or_as_one_quantized_anew(
    name: str,
) -> None:
    assert snr(name, fixed(name).model) >= least_snr(name)


@pytest.mark.parametrize("name", TRAINED)
def test_a_fixed_peer_labels_as_many_digits_correctly_as_before(name: str) -> None:
    assert top1(fixed(name).model) >= top1(peer(name))


#: What no symmetric INT8 pairs can be made of, and words of the one line that says so.
REFUSED = {
    "vision/qdq-int16": "is quantized to int16",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_repaired_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    model, data = save(peer(name), tmp_path / "model.onnx"), samples(name, tmp_path / "data")
    assert REFUSED[name] in refused(
        tmp_path, "quantize", model, "-o", tmp_path / "q.onnx", "--data", data, "--target", RTX
    )
