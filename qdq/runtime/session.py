"""ONNX Runtime sessions of float and of quantized models."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qdq.arrays import Array, Feed
from qdq.cores import read_core_limit
from qdq.errors import DataError, ModelError, QdqError, runtime_line
from qdq.graph.index import GraphIndex
from qdq.graph.plugins import list_missing_imports
from qdq.graph.source import Source, canonical_bytes
from qdq.graph.subgraph import extract_subgraph
from qdq.optional_packages import onnxruntime as ort
from qdq.runtime.devices import CPU
from qdq.runtime.memory_weights import take_out_weights
from qdq.runtime.runnable import require_runnable
from qdq.runtime.timed_session import TimedSession
from qdq.runtime.unknown_operators import (
    describe_node,
    find_unknown_node,
    find_unknown_operators,
    register_libraries,
)
from qdq.stage_log import LOGGER

#: Called after each sample with the number of samples done.
Progress = Callable[[int], None]

#: The log level above errors, which are exceptions too: qdq writes one line to standard error.
_FATAL_LEVEL = 4

#: The message about an operator that ONNX Runtime lacks for the types of a node.
_NO_KERNEL = re.compile(r"implementation for (?P<op>\w+)\(\d+\) node with name '(?P<name>[^']*)'")
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


def open_session(
    index: GraphIndex,
    extra_outputs: list[str],
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = CPU,
    libraries: Iterable[Path] = (),
) -> ort.InferenceSession:
    """Return an ONNX Runtime session of a model that also returns the named tensors.

    `libraries` hold custom operators. Raises ModelError where ONNX Runtime rejects the model, and
    UsageError for a library that it cannot load.
    """
    require_runnable(index)
    options = options or ort.SessionOptions()
    options.log_severity_level = _FATAL_LEVEL
    core_limit = read_core_limit()
    if core_limit and not options.intra_op_num_threads:
        options.intra_op_num_threads = core_limit
    register_libraries(options, libraries)
    source = index.source
    if source.folder is not None and source.external_files:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(source.folder.resolve()))
    new_outputs = [name for name in extra_outputs if name not in index.outputs]
    try:
        model, weights = take_out_weights(source.model)
        if weights:
            options.add_external_initializers(list(weights), list(weights.values()))
        content = _serialise(model, new_outputs)
        session = _open_optimized_session(source.name, content, options, list(providers))
        session.keep(weights)
        return session
    except QdqError:
        raise
    except Exception as error:
        reason = _explain_refusal(error, index)
        raise ModelError(f"{source.name}: ONNX Runtime cannot run it: {reason}") from error


def _open_optimized_session(
    name: str, content: bytes, options: ort.SessionOptions, providers: list[str]
) -> TimedSession:
    """Return a session, without blocked layouts where ONNX Runtime fails to introduce them.

    It loses the output of a convolution that it fuses with the addition of another one, where that
    output is a result too (1.31): "Failed to find node output".
    """
    start = time.monotonic()
    try:
        session = TimedSession(name, content, options, providers=providers)
    except Exception:
        if options.graph_optimization_level != ort.GraphOptimizationLevel.ORT_ENABLE_ALL:
            raise
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        with suppress(Exception):
            return TimedSession(name, content, options, providers=providers)
        raise
    seconds = time.monotonic() - start
    runtime = f"ONNX Runtime {ort.__version__}, {', '.join(providers)}"
    LOGGER.info("session of %s, %d bytes: %.2f s (%s)", name, len(content), seconds, runtime)
    return session


def open_partial_session(
    index: GraphIndex,
    outputs: Sequence[str],
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = CPU,
    libraries: Sequence[Path] = (),
) -> ort.InferenceSession:
    """Return a session of the part of a model that computes some tensors of its main graph.

    These are its outputs. Raises the errors of `open_session`, and ModelError where the tensors
    depend on an operator that ONNX Runtime lacks.
    """
    source = index.source
    unknown = find_unknown_operators(source.model, libraries)
    node = find_unknown_node(source.model, outputs, unknown)
    if node is not None:
        raise ModelError(
            f"{source.name}: ONNX Runtime lacks the operator of {describe_node(node)}. "
            "Pass its library to --ort-library."
        )
    part = extract_subgraph(source.model, outputs)
    partial_source = Source(source.path, part, source.digest)
    return open_session(GraphIndex(partial_source), [], options, providers, libraries)


def _serialise(model: onnx.ModelProto, new_outputs: Iterable[str]) -> bytes:
    """Return a serialised model with more outputs; the model may change."""
    for name in new_outputs:
        model.graph.output.add(name=name)
    model.opset_import.extend(list_missing_imports(model.graph.node, model.opset_import))
    _make_names_unique(model)
    return canonical_bytes(model)


def _explain_refusal(error: Exception, index: GraphIndex) -> str:
    """Return the reason why ONNX Runtime rejects a model, and the fix."""
    reason = runtime_line(error).rstrip(".")
    newest = re.search(r"Current official support for domain \S+ is till opset (\d+)", reason)
    if newest:
        opset = newest[1]
        return (
            f"its opset is newer than {opset}, the last that this version supports."
            f" Export it with opset {opset} or older, or install a newer onnxruntime."
        )
    lacking = _NO_KERNEL.search(reason)
    node_type = _find_node_type(index, lacking["op"], lacking["name"]) if lacking else ""
    if lacking and node_type:
        title = f"{lacking['op']} ({lacking['name']!r})" if lacking["name"] else lacking["op"]
        return (
            f"it has no {node_type} {title}. "
            "Export that node in float32, or quantize with --ranges."
        )
    return f"{reason}. Export it so that ONNX Runtime can run it."


def _find_node_type(index: GraphIndex, op: str, name: str) -> str:
    """Return the type of the first input of a node, as ``bfloat16``, that is not float32.

    "" where no node of this operator and name has such a type.
    """
    for scope in index.scopes.values():
        for node in scope.nodes:
            if node.op != op or node.proto.name != name or not node.inputs:
                continue
            elem_type = scope.elem_type(node.inputs[0])
            if elem_type not in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.FLOAT):
                return onnx.helper.tensor_dtype_to_np_dtype(elem_type).name
    return ""


def _make_names_unique(model: onnx.ModelProto) -> None:
    """Remove the names of nodes where two nodes share one.

    ONNX allows equal names, ONNX Runtime does not (1.31).
    """
    names = [node.name for node in model.graph.node if node.name]
    if len(set(names)) == len(names):
        return
    for node in model.graph.node:
        node.name = ""


def exact_options() -> ort.SessionOptions:
    """Return session options under which Q/DQ is computed as the graph specifies it.

    ONNX Runtime otherwise fuses it into integer kernels, which round in other places and reject
    models that TensorRT accepts, such as a three-dimensional MatMul weight with channel scales or
    FP8 operands of a MatMul (1.31). Biases it divides by the product of two scales for that, which
    overflows where these are FP16. It also drops a Relu before an FP8 QuantizeLinear, as if FP8
    had no sign, and fails at a Clip there.
    """
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "ReluQuantRewrite;ClipQuantRewrite"
    )
    return options


def run_sample(
    session: ort.InferenceSession | None, index: GraphIndex, computed: list[str], feed: Feed
) -> list[tuple[str, Array]]:
    """Return the named outputs of one run, then its inputs; without a session only these.

    Raises DataError where ONNX Runtime fails.
    """
    with sample_errors(index):
        inputs: dict[str, ort.OrtValue] = {}
        for name, values in feed.items():
            inputs[name] = ort.OrtValue.ortvalue_from_numpy(values)
        results = session.run_with_ort_values(computed, inputs) if session else []
        arrays = [_share_memory(result) for result in results]
        return [*zip(computed, arrays, strict=True), *feed.items()]


@contextmanager
def sample_errors(index: GraphIndex) -> Iterator[None]:
    """Raise DataError where ONNX Runtime fails on a sample."""
    try:
        yield
    except QdqError:
        raise
    except Exception as error:
        reason = runtime_line(error).rstrip(".")
        raise DataError(
            f"{index.source.name}: ONNX Runtime failed on a sample: {reason}."
            " Check the shapes of the data."
        ) from error


def run_outputs(
    session: ort.InferenceSession, index: GraphIndex, names: list[str], feed: Feed
) -> list[Array]:
    """Return the named outputs of one run, copied; raises ModelError where ONNX Runtime fails."""
    try:
        outputs: list[Array] = session.run(names, feed)
    except QdqError:
        raise
    except Exception as error:
        reason = runtime_line(error).rstrip(".")
        raise ModelError(
            f"{index.source.name}: ONNX Runtime cannot run it: {reason}. Fix the shapes in it."
        ) from error
    return outputs


def _share_memory(value: ort.OrtValue) -> Array:
    """Return a result without a copy, where this ONNX Runtime shares its memory."""
    ort_value: Any = getattr(value, "_ortvalue", None)
    if hasattr(ort_value, "__dlpack__"):
        return np.from_dlpack(ort_value)
    return np.asarray(value.numpy())
