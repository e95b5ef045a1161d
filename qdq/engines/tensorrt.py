"""TensorRT proper, on the GPU that is present: build, inspect, run and time.

Written against the documented API and untested where this project is developed: there is no GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.engines import layer_file as layerfile
from qdq.engines.compilable_model import find_labels, write_compilable
from qdq.engines.engine import Engine, EngineLayer
from qdq.errors import CompilerError, first_line
from qdq.graph.bodies import all_nodes
from qdq.graph.source import Source
from qdq.target import Target

_NEEDS = "needs a GPU and TensorRT: pip install 'qdq[tensorrt]'; rtx targets need neither"


class EngineRun(msgspec.Struct, frozen=True):
    """An engine that ran on the GPU: its layers, its outputs for each sample, and its speed."""

    engine: Engine
    outputs: tuple[Mapping[str, Array], ...]
    #: Median time of one inference, copies included.
    milliseconds: float


def run_tensorrt(model: Source, target: Target, feeds: Iterable[Mapping[str, Array]]) -> EngineRun:
    """Return what TensorRT makes of a model on the GPU that is present, and what it computes for each sample.

    Raises CompilerError where TensorRT or a GPU is missing, or the build is refused.
    """
    _require(target)
    from polygraphy.backend.trt import TrtRunner
    from polygraphy.exception import PolygraphyException

    samples = tuple(feeds)
    shapes = {name: values.shape for name, values in samples[0].items()}
    try:
        engine, built = _build(model, target, shapes)
        with TrtRunner(engine) as runner:
            outputs, seconds = zip(*(_timed(runner, sample) for sample in samples), strict=True)
    except (PolygraphyException, RuntimeError) as error:
        raise CompilerError(f"target {target}: {first_line(error)}; {_NEEDS}") from error
    return EngineRun(built, outputs, float(np.median(seconds)) * 1e3)


def compile_tensorrt(model: onnx.ModelProto, target: Target) -> Engine:
    """Return the engine that TensorRT makes of a model on the GPU that is present; a refusal comes back as its `failure`.

    Raises CompilerError where TensorRT or a GPU is missing.
    """
    _require(target)
    import tensorrt as trt
    from polygraphy.exception import PolygraphyException

    try:
        trt.Builder(trt.Logger(trt.Logger.ERROR))
    except (TypeError, RuntimeError) as error:
        raise CompilerError(f"target {target}: {first_line(error)}; {_NEEDS}") from error
    try:
        return _build(model, target, {})[1]
    except (PolygraphyException, RuntimeError) as error:
        return Engine(target, f"TensorRT {trt.__version__}", failure=first_line(error))


def _require(target: Target) -> None:
    if importlib.util.find_spec("tensorrt") is None:
        raise CompilerError(f"target {target}: {_NEEDS}")


def _build(
    model: onnx.ModelProto | Source, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Any, Engine]:
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath

    proto = model.model if isinstance(model, Source) else model
    with tempfile.TemporaryDirectory(prefix="qdq-") as folder:
        path = write_compilable(model, shapes, Path(folder))
        config = CreateConfig(profiling_verbosity=trt.ProfilingVerbosity.DETAILED)
        engine = EngineFromNetwork(NetworkFromOnnxPath(str(path)), config)()
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = tuple(
        read_engine_information(json.loads(text), [label for label, _ in all_nodes(proto.graph)])
    )
    return engine, Engine(target, f"TensorRT {trt.__version__}", layers)


def is_gpu_present() -> bool:
    """Whether TensorRT is installed and a GPU that CUDA can use is there."""
    if importlib.util.find_spec("tensorrt") is None:
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


def read_engine_information(content: Mapping[str, Any], labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers of an engine inspector's JSON, of TensorRT 8 to 11; `labels` name the nodes that its tokens stand for."""
    return layerfile.read_inspector_layers(
        content["Layers"],
        lambda name, metadata: find_labels(f"{name} {metadata}", labels),
        "the engine",
    )


def _timed(runner: Any, sample: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    start = time.perf_counter()
    outputs = runner.infer(dict(sample))
    return {name: np.array(values) for name, values in outputs.items()}, time.perf_counter() - start
