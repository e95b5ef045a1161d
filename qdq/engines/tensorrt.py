"""TensorRT on the GPU that is present: build, inspect, run and time engines.

Written against the documented API and untested where this project is developed: there is no GPU.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.engines.compilable_model import find_labels, write_compilable
from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.layer_file import read_inspector_layers
from qdq.errors import CompilerError, first_line
from qdq.files.temporary import work_folder
from qdq.graph.bodies import all_nodes
from qdq.graph.source import Source
from qdq.optional_packages import is_installed, require_package
from qdq.target import Target

_REQUIREMENTS = (
    "A trt target needs a GPU and TensorRT; an rtx target needs neither. "
    "Install TensorRT with \"pip install 'qdq[tensorrt]'\"."
)


class EngineRun(msgspec.Struct, frozen=True):
    """An engine that ran on the GPU: its layers, its outputs for each sample, and its speed."""

    engine: Engine
    outputs: tuple[Mapping[str, Array], ...]
    #: Median time of one inference, copies included.
    milliseconds: float


def run_tensorrt(model: Source, target: Target, feeds: Iterable[Mapping[str, Array]]) -> EngineRun:
    """Return the engine that TensorRT builds on the GPU, and its outputs for each sample.

    Raises CompilerError where TensorRT or a GPU is missing, or the build is refused.
    """
    _require_tensorrt(target)
    from polygraphy.backend.trt import TrtRunner
    from polygraphy.exception import PolygraphyException

    samples = tuple(feeds)
    shapes = {name: values.shape for name, values in samples[0].items()}
    outputs = []
    seconds = []
    try:
        trt_engine, engine = _build(model, target, shapes)
        with TrtRunner(trt_engine) as runner:
            for sample in samples:
                sample_outputs, sample_seconds = _run_sample(runner, sample)
                outputs.append(sample_outputs)
                seconds.append(sample_seconds)
    except (PolygraphyException, RuntimeError) as error:
        raise CompilerError(_describe_failure(target, error)) from error
    return EngineRun(engine, tuple(outputs), float(np.median(seconds)) * 1e3)


def compile_tensorrt(model: onnx.ModelProto, target: Target) -> Engine:
    """Return the engine that TensorRT builds from a model on the GPU that is present.

    TensorRT's refusal is returned as `Engine.failure`. Raises CompilerError where TensorRT or a
    GPU is missing.
    """
    _require_tensorrt(target)
    import tensorrt as trt
    from polygraphy.exception import PolygraphyException

    try:
        trt.Builder(trt.Logger(trt.Logger.ERROR))
    except (TypeError, RuntimeError) as error:
        raise CompilerError(_describe_failure(target, error)) from error
    try:
        _, engine = _build(model, target, {})
    except (PolygraphyException, RuntimeError) as error:
        return Engine(target, f"TensorRT {trt.__version__}", failure=first_line(error))
    return engine


def is_gpu_present() -> bool:
    """Whether TensorRT is installed and there is a GPU that CUDA can use."""
    if not is_installed("tensorrt"):
        return False
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0:
        return False
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0


def read_engine_information(content: Mapping[str, Any], labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers of an engine inspector's JSON, of TensorRT 8 to 11.

    `labels` holds the labels of the model's nodes, which replace the tokens in the JSON.
    """

    def find_nodes(name: str, metadata: str) -> tuple[str, ...]:
        return find_labels(f"{name} {metadata}", labels)

    return read_inspector_layers(content["Layers"], find_nodes, "the engine")


def _require_tensorrt(target: Target) -> None:
    if not is_installed("tensorrt"):
        raise CompilerError(f"target {target}: TensorRT is not installed. {_REQUIREMENTS}")
    require_package("polygraphy")


def _describe_failure(target: Target, error: Exception) -> str:
    reason = first_line(error).rstrip(".")
    return f"target {target}: {reason}. {_REQUIREMENTS}"


def _build(
    model: onnx.ModelProto | Source, target: Target, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Any, Engine]:
    """Return TensorRT's engine of a model, and its layers."""
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath

    proto = model.model if isinstance(model, Source) else model
    with work_folder() as folder:
        path = write_compilable(model, shapes, folder)
        config = CreateConfig(profiling_verbosity=trt.ProfilingVerbosity.DETAILED)
        trt_engine = EngineFromNetwork(NetworkFromOnnxPath(str(path)), config)()
    inspector = trt_engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    labels = [label for label, _ in all_nodes(proto.graph)]
    layers = tuple(read_engine_information(json.loads(text), labels))
    return trt_engine, Engine(target, f"TensorRT {trt.__version__}", layers)


def _run_sample(runner: Any, sample: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    """Return copies of the outputs of one inference, and its time in seconds."""
    start = time.perf_counter()
    outputs = runner.infer(dict(sample))
    copies = {name: np.array(values) for name, values in outputs.items()}
    return copies, time.perf_counter() - start
