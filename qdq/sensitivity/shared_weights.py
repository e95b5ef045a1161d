"""Weights that all sessions of a switchable model read from the same memory.

ONNX Runtime takes them as external initializers: the models of the segments only declare them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper

from qdq.arrays import Array
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.optional_packages import onnxruntime as ort
from qdq.quantizer import INT8, Quantizer
from qdq.runtime.memory_weights import declare_weight
from qdq.runtime.session import exact_options, open_session
from qdq.sensitivity.switchable_pairs import SwitchablePair

#: Smaller tensors are stored in each model.
_LEAST_BYTES = 1024

_LEAST_INT8, _LARGEST_INT8 = -128, 127

#: A weight by the path of its graph and its name, and its format.
_Rounding = tuple[tuple[str, str], Quantizer]


class SharedWeights:
    """The large initializers of a model, and the weights of a plan as their pairs round them."""

    def __init__(self, index: GraphIndex, libraries: Iterable[Path] = ()) -> None:
        self._index = index
        self._libraries = tuple(libraries)
        #: Declarations of the initializers, by name.
        self.declared: dict[str, TensorProto] = {}
        for tensor in index.source.model.graph.initializer:
            if len(tensor.raw_data) >= _LEAST_BYTES:
                self.declared[tensor.name] = declare_weight(
                    tensor.name, tensor.data_type, tensor.dims
                )
        self._values: dict[tuple[str, str], ort.OrtValue] = {}
        self._rounded: dict[_Rounding, ort.OrtValue] = {}
        self._lock = Lock()

    def read(self, pair: SwitchablePair) -> ort.OrtValue:
        """Return the weight of a pair as it is."""
        edge = pair.edge
        with self._lock:
            return self._read(edge.graph, edge.tensor)

    def round(self, pairs: Iterable[SwitchablePair]) -> list[ort.OrtValue]:
        """Return the weights of some pairs after their Q and DQ; each is computed once."""
        listed = list(pairs)
        with self._lock:
            self._round_missing(listed)
            return [self._rounded[_name_rounding(pair)] for pair in listed]

    def _round_missing(self, pairs: Iterable[SwitchablePair]) -> None:
        """Round the weights that are not known; ONNX Runtime does what `round_weight` cannot."""
        missing: dict[_Rounding, SwitchablePair] = {}
        for pair in pairs:
            key = _name_rounding(pair)
            if key in self._rounded:
                continue
            values = self._index.scope(pair.edge).constant(pair.edge.tensor)
            if can_round(pair, values):
                rounded = round_weight(pair, values)
                self._rounded[key] = _to_value(rounded)
            else:
                missing[key] = pair
        if missing:
            results = self._run_pairs(list(missing.values()))
            self._rounded.update(zip(missing, results, strict=True))
        self._index.forget_constants()

    def declare_rounded(self, pair: SwitchablePair) -> TensorProto:
        """Return the declaration of a pair's rounded weight, by the name of the pair."""
        edge = pair.edge
        shape = self._index.scope(edge).constant(edge.tensor).shape
        return declare_weight(pair.input_name, pair.elem_type, shape)

    def open_session(
        self, model: ModelProto, rounded: Mapping[str, ort.OrtValue]
    ) -> ort.InferenceSession:
        """Return a session of a model that declares weights; `rounded` has those of pairs.

        Its runs use one thread, so that several at a time use the cores.
        """
        values = dict(rounded)
        with self._lock:
            for tensor in model.graph.initializer:
                if tensor.name in self.declared:
                    values[tensor.name] = self._read(self._index.path, tensor.name)
        source = Source(self._index.source.path, model, "", notes=("segment",))
        options = exact_options()
        options.intra_op_num_threads = 1
        options.add_external_initializers(list(values), list(values.values()))
        return open_session(GraphIndex(source), [], options, libraries=self._libraries)

    def _read(self, graph: str, tensor: str) -> ort.OrtValue:
        key = (graph, tensor)
        if key not in self._values:
            array = self._index.scopes[graph].constant(tensor)
            self._values[key] = _to_value(array)
        return self._values[key]

    def _run_pairs(self, pairs: Sequence[SwitchablePair]) -> list[ort.OrtValue]:
        graph = GraphProto(name="rounding")
        inputs: dict[str, ort.OrtValue] = {}
        for pair in pairs:
            result = f"{pair.input_name}_rounded"
            graph.node.extend(pair.make_nodes(pair.input_name, result))
            graph.input.append(pair.declare_input())
            graph.output.append(helper.make_tensor_value_info(result, pair.elem_type, None))
            inputs[pair.input_name] = self._read(pair.edge.graph, pair.edge.tensor)
        model = ModelProto(graph=graph, ir_version=self._index.source.model.ir_version)
        model.opset_import.extend(self._index.source.model.opset_import)
        source = Source(self._index.source.path, model, "", notes=("rounding",))
        session = open_session(GraphIndex(source), [], exact_options(), libraries=self._libraries)
        names = [value.name for value in graph.output]
        results = session.run_with_ort_values(names, inputs)
        return [_to_value(result.numpy()) for result in results]


def _to_value(array: Array) -> ort.OrtValue:
    """Return values in memory that ONNX Runtime does not own, as external initializers must be."""
    return ort.OrtValue.ortvalue_from_numpy(np.asarray(array, order="C"))


def can_round(pair: SwitchablePair, values: Array) -> bool:
    """Whether `round_weight` computes a weight's Q and DQ: in INT8, of float32 values."""
    return pair.quantizer.dtype == INT8 and values.dtype == pair.scales.dtype == np.float32


def round_weight(pair: SwitchablePair, values: Array) -> Array:
    """Return a weight after its Q and DQ, to the last bit as the ONNX operators are specified.

    ONNX Runtime 1.31 computes them twenty times as slowly for scales along the last axis.
    """
    shape = [1] * values.ndim
    if pair.quantizer.axis is not None:
        shape[pair.quantizer.axis] = -1
    scales = pair.scales.reshape(shape)
    rounded = np.rint(values / scales)
    np.clip(rounded, _LEAST_INT8, _LARGEST_INT8, out=rounded)
    rounded *= scales
    return rounded


def _name_rounding(pair: SwitchablePair) -> _Rounding:
    return (pair.edge.graph, pair.edge.tensor), pair.quantizer
