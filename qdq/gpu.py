"""TensorRT proper, on the GPU that is present: build, inspect, run and time.

Written against the documented API and untested where this project is developed: there is no GPU.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qdq.engine import Engine, EngineLayer, LayerTensor, token_labels, write_compilable
from qdq.errors import CompilerError, first_line
from qdq.index import Array, every_node
from qdq.loading import Source
from qdq.target import Target

_TYPES = {"Int8": "Int8", "FP32": "Float", "FP16": "Half", "BF16": "BFloat16", "FP8": "FP8", "Int32": "Int32", "Int64": "Int64", "Bool": "Bool"}
_TYPE = re.compile("|".join(_TYPES))
_NEEDS = "needs a GPU and TensorRT: pip install 'qdq[tensorrt]'; rtx targets need neither"


class Run(msgspec.Struct, frozen=True):
    """An engine that ran on the GPU: its layers, its outputs for each sample, and its speed."""

    engine: Engine
    outputs: tuple[Mapping[str, Array], ...]
    #: Median time of one inference, copies included.
    milliseconds: float


def run_tensorrt(model: Source, target: Target, feeds: Iterable[Mapping[str, Array]]) -> Run:
    """Return what TensorRT makes of a model on the GPU that is present, and what it computes for each sample.

    Raises CompilerError where TensorRT or a GPU is missing, or the build is refused.
    """
    if importlib.util.find_spec("tensorrt") is None:
        raise CompilerError(f"target {target}: {_NEEDS}")
    import tensorrt as trt
    from polygraphy.backend.trt import CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, TrtRunner
    from polygraphy.exception import PolygraphyException

    samples = tuple(feeds)
    shapes = {name: values.shape for name, values in samples[0].items()}
    try:
        with tempfile.TemporaryDirectory(prefix="qdq-") as folder:
            path = write_compilable(model, shapes, Path(folder))
            config = CreateConfig(profiling_verbosity=trt.ProfilingVerbosity.DETAILED)
            engine = EngineFromNetwork(NetworkFromOnnxPath(str(path)), config)()
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        layers = tuple(read_inspector(json.loads(text), [label for label, _ in every_node(model.model.graph)]))
        with TrtRunner(engine) as runner:
            outputs, seconds = zip(*(_timed(runner, sample) for sample in samples), strict=True)
    except (PolygraphyException, RuntimeError) as error:
        raise CompilerError(f"target {target}: {first_line(error)}; {_NEEDS}") from error
    return Run(Engine(target, f"TensorRT {trt.__version__}", layers), outputs, float(np.median(seconds)) * 1e3)


def read_inspector(content: Mapping[str, Any], labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers of an engine inspector's JSON, of TensorRT 8 to 11; `labels` name the nodes that its tokens stand for."""
    for layer in content["Layers"]:
        if isinstance(layer, str):
            raise CompilerError("the engine was built without detailed profiling verbosity, so its layers cannot be read")
        name = layer["Name"]
        weights = layer.get("Weights")
        constants = (LayerTensor("weights", (int(weights["Count"]),), _data_type(str(weights["Type"]))),) if isinstance(weights, dict) else ()
        yield EngineLayer(
            name,
            layer.get("LayerType", ""),
            _tensors(layer.get("Inputs", ())),
            constants,
            _tensors(layer.get("Outputs", ())),
            token_labels(f"{name} {layer.get('Metadata', '')}", labels),
        )


def _tensors(described: Iterable[Mapping[str, Any]]) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor(t["Name"], tuple(t["Dimensions"]), _data_type(str(t.get("Format/Datatype") or t.get("Datatype") or ""))) for t in described)


def _data_type(text: str) -> str:
    found = _TYPE.search(text)
    return _TYPES[found[0]] if found else text


def _timed(runner: Any, sample: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
    start = time.perf_counter()
    outputs = runner.infer(dict(sample))
    return {name: np.array(values) for name, values in outputs.items()}, time.perf_counter() - start
