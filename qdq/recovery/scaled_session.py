"""A session in which the scales of activations are inputs, so that it serves all ranges.

Weights are quantized as planned. A negative scale switches the pair of an activation off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from qdq.arrays import Array, Feed, Floats
from qdq.calibration.scales import Scales
from qdq.graph.bodies import all_graphs
from qdq.graph.index import GraphIndex
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.source import Source
from qdq.graph.unique_names import UniqueNames
from qdq.optional_packages import onnxruntime as ort
from qdq.planning.decisions import Plan
from qdq.quantizer import Quantizer
from qdq.recovery.measured_tensors import find_measured_tensors
from qdq.rewriting.inserter import insert_pairs, name_scales
from qdq.rewriting.stored_scales import store_scales
from qdq.runtime.session import exact_options, open_partial_session, open_session, run_outputs
from qdq.runtime.unknown_operators import find_unknown_operators

#: A pair of an activation: the tensor, after the path of its body, and the quantizer.
PairKey = tuple[str, Quantizer]

#: The scale of a pair that is switched off.
OFF = -1.0

#: Noise below this share counts as this share: float32 does not resolve less.
_LEAST_NOISE = 1e-15
_TINY = 1e-30


class ScaledSession:
    """Runs a model with the pairs of its activations, each with the scale of the run or off."""

    def __init__(
        self, index: GraphIndex, plan: Plan, scales: Scales, libraries: Sequence[Path] = ()
    ) -> None:
        """Open the session. Raises ModelError where ONNX Runtime cannot run the model."""
        names: dict[PairKey, str] = {}
        for key, name in name_scales(index, plan).items():
            if key[1].calibrated:
                names[key] = name
        model = insert_pairs(index, plan, scales)
        #: The type of each pair's scale.
        self._dtypes = _make_inputs(model.graph, set(names.values()))
        _add_switches(model.graph, self._dtypes)
        #: The scales that were passed, by pair.
        self.scales: dict[PairKey, float] = {}
        for pair in scales.by_pair:
            if pair.quantizer.calibrated:
                self.scales[pair.tensor, pair.quantizer] = pair.scales[0]
        self._names = names
        #: The tensors whose error is measured.
        self.measured = find_measured_tensors(index, libraries)
        source = index.source
        self._index = GraphIndex(Source(source.path, model, source.digest))
        self._session = _open(self._index, self.measured, libraries)
        self._inputs = {item.name for item in self._session.get_inputs()}

    @property
    def pairs(self) -> tuple[PairKey, ...]:
        """The pairs of activations, in plan order."""
        return tuple(self._names)

    def run(self, feed: Feed, scales: Mapping[PairKey, float]) -> list[Array]:
        """Return the measured tensors of one sample; pairs without a scale are off."""
        inputs = {name: values for name, values in feed.items() if name in self._inputs}
        for key, name in self._names.items():
            if name not in self._inputs:
                continue
            dtype = self._dtypes[name]
            scale = scales.get(key)
            if scale is None:
                inputs[name] = np.array(OFF, dtype)
            else:
                stored = store_scales([scale], key[1].element, dtype)
                inputs[name] = stored.reshape(())
        return run_outputs(self._session, self._index, list(self.measured), inputs)


class ErrorMeter:
    """Measures the error of choices of scales against the same model with all pairs off."""

    def __init__(self, session: ScaledSession, samples: Iterable[Feed]) -> None:
        self._session = session
        self._samples = list(samples)
        self._expected = [session.run(feed, {}) for feed in self._samples]
        #: The number of runs so far.
        self.runs = len(self._samples)
        self._energies = np.zeros((len(self._samples), len(session.measured)))
        for row, tensors in enumerate(self._expected):
            self._energies[row] = [_measure_energy(tensor) for tensor in tensors]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples)

    @property
    def log_variance(self) -> float:
        """The variance of the logarithm of one sample's noise, for errors independent by value.

        It is that of a chi-squared variable of as many degrees of freedom as a measured tensor has
        values, less one for the common part: the trigamma function of half that number, by its
        asymptotic series (Abramowitz and Stegun, 6.4.12). The result is the mean over the tensors.
        """
        sizes = [tensor.size for tensor in self._expected[0]]
        halves = np.maximum(np.array(sizes) - 1, 1) / 2
        return float(np.mean(1 / halves + 1 / (2 * halves**2) + 1 / (6 * halves**3)))

    def measure(self, scales: Mapping[PairKey, float], rows: Iterable[int]) -> Floats:
        """Return the energy of the error in some of the samples: [rows, measured tensors].

        It is in units of the mean energy of the tensor in a sample.
        """
        errors: list[Floats] = []
        for row in rows:
            tensors = self._session.run(self._samples[row], scales)
            self.runs += 1
            errors.append(self._compare(tensors, row))
        means = np.maximum(self._energies.mean(axis=0), _TINY)
        noise: Floats = np.array(errors) / means
        return np.where(np.isfinite(noise), noise, 1.0)

    def _compare(self, tensors: list[Array], row: int) -> Floats:
        """Return the energy of each tensor's error; that of the tensor where shapes differ."""
        errors: Floats = self._energies[row].copy()
        for column, actual in enumerate(tensors):
            expected = self._expected[row][column]
            if actual.shape == expected.shape:
                errors[column] = _measure_energy(actual.astype(np.float64) - expected)
        return errors


def to_decibels(noise: Floats) -> float:
    """Return the signal-to-noise ratio in dB, as the mean over the measured tensors.

    `noise` is what `ErrorMeter.measure` returns, for one or several samples.
    """
    mean_noise = np.maximum(noise.mean(axis=0), _LEAST_NOISE)
    return float(np.mean(-10.0 * np.log10(mean_noise)))


def _measure_energy(values: Array) -> float:
    flat = values.astype(np.float64).ravel()
    return float(flat @ flat)


def _make_inputs(graph: GraphProto, names: Set[str]) -> dict[str, np.dtype[Any]]:
    """Replace the initializers of these names with inputs of shape []; return their types."""
    dtypes: dict[str, np.dtype[Any]] = {}
    kept: list[TensorProto] = []
    for tensor in graph.initializer:
        if tensor.name not in names:
            kept.append(tensor)
            continue
        dtypes[tensor.name] = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        item = helper.make_tensor_value_info(tensor.name, tensor.data_type, ())
        graph.input.append(item)
    holder = GraphProto()  # holds copies: the tensors belong to the graph
    holder.initializer.extend(kept)
    del graph.initializer[:]
    graph.initializer.extend(holder.initializer)
    return dtypes


def _add_switches(graph: GraphProto, dtypes: Mapping[str, np.dtype[Any]]) -> None:
    """Let each pair return its tensor unchanged where its scale is negative."""
    names = UniqueNames(graph, include_value_info=True)
    conditions: list[NodeProto] = []
    is_on: dict[str, str] = {}
    for scale, dtype in dtypes.items():
        zero = names.fresh(f"{scale}_none")
        is_on[scale] = names.fresh(f"{scale}_is_on")
        graph.initializer.append(numpy_helper.from_array(np.zeros((), dtype), zero))
        conditions.append(helper.make_node("Greater", [scale, zero], [is_on[scale]]))
    # Bodies come first: the nodes of a graph are copied once its own choices are added.
    for scope in reversed(list(all_graphs(graph))):
        _add_choices(scope, is_on, names)
    _replace_nodes(graph, [*conditions, *graph.node])


def _add_choices(graph: GraphProto, is_on: Mapping[str, str], names: UniqueNames) -> None:
    """Add the choice between a pair's result and its tensor behind each pair of one graph."""
    nodes: list[NodeProto] = []
    tensors: dict[str, str] = {}
    for node in graph.node:
        nodes.append(node)
        scale = node.input[1] if len(node.input) > 1 else ""
        if scale not in is_on:
            continue
        if node.op_type == QUANTIZE:
            tensors[scale] = node.input[0]
        elif node.op_type == DEQUANTIZE:
            result = node.output[0]
            node.output[0] = names.fresh(f"{result}_rounded")
            inputs = [is_on[scale], node.output[0], tensors[scale]]
            nodes.append(helper.make_node("Where", inputs, [result]))
    _replace_nodes(graph, nodes)


def _replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    holder = GraphProto()  # holds copies: most of the nodes belong to the graph
    holder.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(holder.node)


def _open(
    index: GraphIndex, measured: Sequence[str], libraries: Sequence[Path]
) -> ort.InferenceSession:
    """Return a session that returns the measured tensors, of a part of the model where needed."""
    if find_unknown_operators(index.source.model, libraries):
        return open_partial_session(index, measured, exact_options(), libraries=libraries)
    return open_session(index, list(measured), exact_options(), libraries=libraries)
