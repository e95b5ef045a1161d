"""ONNX Runtime sessions of float and of quantized models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from qdq.arrays import Array, Feed
from qdq.errors import DataError, ModelError, runtime_line
from qdq.graph.index import GraphIndex
from qdq.graph.source import canonical_bytes
from qdq.runtime.devices import CPU

#: Called after each sample with the number done.
Progress = Callable[[int], None]

#: Above ONNX Runtime's errors: they come as exceptions too, and standard error is for one line.
_FATAL_LEVEL = 4
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    index: GraphIndex,
    extra_outputs: list[str],
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = CPU,
) -> ort.InferenceSession:
    """Return an ONNX Runtime session of a model that also gives the named tensors; raises ModelError where it is refused."""
    options = options or ort.SessionOptions()
    options.log_severity_level = _FATAL_LEVEL
    model = index.source.model
    if index.source.folder is not None and index.source.external_files:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(index.source.folder.resolve()))
    addition = onnx.ModelProto(
        graph=onnx.GraphProto(
            output=[
                onnx.ValueInfoProto(name=name)
                for name in extra_outputs
                if name not in index.outputs
            ]
        )
    )
    named = _uniquely_named(model)
    try:
        content = (
            index.source.bytes_with(addition)
            if named is model
            else canonical_bytes(named) + addition.SerializeToString()
        )
        return ort.InferenceSession(content, options, providers=list(providers))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{index.source.name}: ONNX Runtime cannot run it: {_refusal(error)}"
        ) from error


def _refusal(error: Exception) -> str:
    """Return why ONNX Runtime refuses a model, and the way out."""
    says = runtime_line(error).rstrip(".")
    if newest := re.search(r"Current official support for domain \S+ is till opset (\d+)", says):
        return f"its opset is newer than {newest[1]}, the last that this version takes; export it with that or an older one, or install a newer onnxruntime"
    return f"{says}; export it so that it runs there"


def _uniquely_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model, or a copy without node names where two nodes share one: ONNX allows that, ONNX Runtime does not (1.31)."""
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) == len(names):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        node.name = ""
    return copy


def exact_options() -> ort.SessionOptions:
    """Return session options under which Q/DQ is computed as the graph spells it.

    ONNX Runtime otherwise fuses it into integer kernels of its own, which round in other places and
    refuse what TensorRT takes, such as a three-dimensional MatMul weight with channel scales or FP8
    operands of a MatMul (1.31). It also drops a Relu before an FP8
    QuantizeLinear, as if FP8 had no sign, and fails at a Clip there.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "ReluQuantRewrite;ClipQuantRewrite"
    )
    return options


def run_sample(
    session: ort.InferenceSession, index: GraphIndex, computed: list[str], feed: Feed
) -> list[tuple[str, Array]]:
    """Return some outputs of one run, and what it was fed; raises DataError where ONNX Runtime fails."""
    try:
        given = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in feed.items()}
        results = session.run_with_ort_values(computed, given) if computed else []
        return [*zip(computed, map(_shared, results), strict=True), *feed.items()]
    except Exception as error:
        raise DataError(
            f"{index.source.name}: ONNX Runtime failed on a sample: {runtime_line(error).rstrip('.')}; check the shapes of the data"
        ) from error


def _shared(value: ort.OrtValue) -> Array:
    """Return a result without copying it, where this ONNX Runtime lends its memory."""
    lender: Any = getattr(value, "_ortvalue", None)
    return np.from_dlpack(lender) if hasattr(lender, "__dlpack__") else np.asarray(value.numpy())
