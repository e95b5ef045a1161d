"""The error of a quantized model as it grows from layer to layer, against its float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path

import msgspec
import onnxruntime as ort

from qdq.data.feeds import FeedSample
from qdq.graph.index import GraphIndex, Node
from qdq.graph.pairs import find_pairs
from qdq.metrics.output_errors import EnergySums
from qdq.quantized.model import QuantizedModel
from qdq.quantized.stripper import find_renamed_outputs
from qdq.runtime.session import (
    Progress,
    exact_options,
    open_partial_session,
    open_session,
    run_outputs,
)
from qdq.runtime.unknown_operators import find_unknown_node, find_unknown_operators


class LayerError(msgspec.Struct, frozen=True):
    """The error at the result of a layer in the quantized model, with all layers before it in INT8.

    Ratios are in dB, null where nothing differs.
    """

    #: The label of the node.
    node: str
    #: Its operator.
    op: str
    #: The tensor that it computes, in the float model.
    tensor: str
    #: The signal-to-noise ratio there.
    snr_db: float
    #: By how much the ratio is below the least one of the compared layers right before; null for
    #: the first layers, and where nothing differs before it.
    fall_db: float | None


class LayerComparison:
    """The results of layers that a float and a quantized model have in common."""

    def __init__(
        self,
        index: GraphIndex,
        quantized_model: QuantizedModel,
        labels: Set[str],
        libraries: Sequence[Path] = (),
    ) -> None:
        """Find the tensors: the results of the labelled nodes, and the outputs.

        A tensor is compared where both models have one of its name. `quantized_model` may name it
        otherwise where a pair computes an output of the model.
        """
        self._index = index
        self._quantized_index = GraphIndex(quantized_model.source)
        self._libraries = libraries
        unknown = find_unknown_operators(index.source.model, libraries)
        self._is_partial = bool(unknown)
        names = _find_names(index, self._quantized_index, labels)
        for tensor in list(names):
            if find_unknown_node(index.source.model, [tensor], unknown) is not None:
                del names[tensor]
        #: The name in the quantized model of each compared tensor of the float model.
        self.names: Mapping[str, str] = names

    def measure(
        self, samples: Iterable[FeedSample], progress: Progress | None = None
    ) -> tuple[LayerError, ...]:
        """Return the error of each layer over some samples, in the order of the graph.

        Raises ModelError where ONNX Runtime cannot run one of the models.
        """
        if not self.names:
            return ()
        tensors = list(self.names)
        quantized_names = list(self.names.values())
        session = self._open(self._index, tensors)
        quantized_session = self._open(self._quantized_index, quantized_names)
        sums = {tensor: EnergySums() for tensor in tensors}
        for number, sample in enumerate(samples, 1):
            expected = run_outputs(session, self._index, tensors, sample.feed)
            actual = run_outputs(
                quantized_session, self._quantized_index, quantized_names, sample.feed
            )
            for tensor, values, quantized_values in zip(tensors, expected, actual, strict=True):
                sums[tensor].add(values, quantized_values)
            if progress:
                progress(number)
        return tuple(self._describe({tensor: sums[tensor].snr_db() for tensor in tensors}))

    def _open(self, index: GraphIndex, names: list[str]) -> ort.InferenceSession:
        options = exact_options()
        if self._is_partial:
            return open_partial_session(index, names, options, libraries=self._libraries)
        return open_session(index, names, options, libraries=self._libraries)

    def _describe(self, ratios: Mapping[str, float]) -> Iterable[LayerError]:
        for node in self._index.nodes:
            for tensor in node.outputs:
                if tensor in ratios:
                    before = [ratios[name] for name in _find_before(self._index, node, ratios)]
                    snr_db = round(ratios[tensor], 2)
                    fall_db = None
                    if before and min(before) < float("inf"):
                        fall_db = round(min(before) - ratios[tensor], 2)
                    yield LayerError(node.label, node.op, tensor, snr_db, fall_db)


def _find_names(index: GraphIndex, quantized_index: GraphIndex, labels: Set[str]) -> dict[str, str]:
    """Return the names of the tensors to compare, by those in the float model."""
    graph = quantized_index.graph
    renamed = find_renamed_outputs(graph, find_pairs(graph, ()))
    quantized_names = {output: tensor for tensor, output in renamed.items()}
    names: dict[str, str] = {}
    for node in index.nodes:
        for tensor in node.outputs:
            if node.label not in labels and tensor not in index.outputs:
                continue
            name = tensor if tensor in index.outputs else quantized_names.get(tensor, tensor)
            if name not in quantized_index.producers or not index.is_float(tensor):
                continue
            if not index.is_constant(tensor):
                names[tensor] = name
    return names


def _find_before(index: GraphIndex, node: Node, compared: Mapping[str, float]) -> set[str]:
    """Return the compared tensors that a node's inputs follow from, without others in between."""
    tensors: set[str] = set()
    pending = list(node.read_names)
    visited = set(pending)
    while pending:
        tensor = pending.pop()
        producer = index.producers.get(tensor)
        if tensor in compared:
            tensors.add(tensor)
        elif producer is not None:
            new = [name for name in producer.read_names if name not in visited]
            visited.update(new)
            pending += new
    return tensors
