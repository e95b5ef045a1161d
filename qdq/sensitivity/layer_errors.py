"""The error of a quantized model as it grows from layer to layer, against its float model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import msgspec

from qdq.data.feeds import FeedSample
from qdq.graph.index import GraphIndex, Node
from qdq.graph.qdq_graph import QdqGraph
from qdq.metrics.output_errors import EnergySums
from qdq.optional_packages import onnxruntime as ort
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

#: Operators that tools fold into the pair after them.
FOLDED = ("Relu", "Clip")


class _ComparedLayer(msgspec.Struct, frozen=True):
    """A result that both models have."""

    node: Node
    #: The tensor in the float model, and in the quantized model.
    tensor: str
    quantized_name: str


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
        self._layers: dict[str, _ComparedLayer] = {}
        for layer in _ResultFinder(index, self._quantized_index).find_layers(labels):
            if find_unknown_node(index.source.model, [layer.tensor], unknown) is None:
                self._layers.setdefault(layer.tensor, layer)

    def measure(
        self, samples: Iterable[FeedSample], progress: Progress | None = None
    ) -> tuple[LayerError, ...]:
        """Return the error of each layer over some samples, in the order of the graph.

        Raises ModelError where ONNX Runtime cannot run one of the models.
        """
        if not self._layers:
            return ()
        tensors = list(self._layers)
        quantized_names = [layer.quantized_name for layer in self._layers.values()]
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
        ratios = {tensor: sums[tensor].snr_db() for tensor in tensors}
        return tuple(self._describe(ratios))

    def _open(self, index: GraphIndex, names: list[str]) -> ort.InferenceSession:
        options = exact_options()
        if self._is_partial:
            return open_partial_session(index, names, options, libraries=self._libraries)
        return open_session(index, names, options, libraries=self._libraries)

    def _describe(self, ratios: Mapping[str, float]) -> Iterator[LayerError]:
        for tensor, layer in self._layers.items():
            node = layer.node
            before = [ratios[name] for name in _find_before(self._index, node, ratios)]
            least = min(before, default=math.inf)
            fall_db = round(least - ratios[tensor], 2) if math.isfinite(least) else None
            yield LayerError(node.label, node.op, tensor, round(ratios[tensor], 2), fall_db)


class _ResultFinder:
    """The results of layers that both models have."""

    def __init__(self, index: GraphIndex, quantized_index: GraphIndex) -> None:
        self._index = index
        self._quantized_index = quantized_index
        graph = QdqGraph(quantized_index.graph)
        renamed = find_renamed_outputs(graph)
        self._names = {output: tensor for tensor, output in renamed.items()}
        self._dequantized = {pair.tensor: pair.output for pair in reversed(graph.pairs)}

    def find_layers(self, labels: Set[str]) -> Iterator[_ComparedLayer]:
        """Yield the labelled nodes, and those that compute outputs, with a result in both."""
        index = self._index
        for node in index.nodes:
            for output in node.outputs:
                if node.label not in labels and output not in index.outputs:
                    continue
                tensor, name = self._find_common(output)
                if name and index.is_float(tensor) and not index.is_constant(tensor):
                    yield _ComparedLayer(node, tensor, name)

    def _find_common(self, tensor: str) -> tuple[str, str]:
        """Return a result, or that of the Relu or Clip after it, and its name in both models.

        The second name is "" where the quantized model has neither.
        """
        while not self._find_name(tensor):
            readers = self._index.edges_from(tensor)
            reader = self._index.node(readers[0]) if len(readers) == 1 else None
            if reader is None or reader.op not in FOLDED:
                return tensor, ""
            tensor = reader.outputs[0]
        return tensor, self._find_name(tensor)

    def _find_name(self, tensor: str) -> str:
        """Return the name of a result in the quantized model, "" where it has none.

        Where another node computes the tensor of its name, as a convolution before a Relu that was
        folded into the pair, it is that of the Relu after it, else that of the pair.
        """
        if tensor in self._index.outputs and tensor in self._quantized_index.producers:
            return tensor
        name = self._names.get(tensor, tensor)
        producer = self._quantized_index.producers.get(name)
        if producer is None:
            return ""
        op = self._index.producers[tensor].op
        if producer.op == op:
            return name
        for edge in self._quantized_index.edges_from(name):
            reader = self._quantized_index.node(edge)
            if op in FOLDED and reader.op in FOLDED:
                return str(reader.outputs[0])
        return self._dequantized.get(name, "")


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
