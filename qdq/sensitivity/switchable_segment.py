"""A segment of a graph in ONNX Runtime with all, none or any part of its pairs.

All and none are sessions of their own, which ONNX Runtime optimizes as it does a file: with its
weights packed and its activations fused. For a part, every activation that a node reads through a
pair becomes an If, which computes Q and DQ or returns the tensor, and weights become inputs, which
are fed as they are or rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import TypeAlias

import numpy as np
from onnx import ModelProto, NodeProto

from qdq.graph.bodies import node_bodies, qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.optional_packages import onnxruntime as ort
from qdq.planning.decisions import Placement
from qdq.sensitivity.graph_segments import Segment, extract_segment
from qdq.sensitivity.shared_weights import SharedWeights
from qdq.sensitivity.switchable_pairs import SwitchablePair

#: Values by tensor.
Values: TypeAlias = "Mapping[str, ort.OrtValue]"

#: An input of a node: graph, label of the node, slot.
_Slot = tuple[str, str, int]

#: Returns the tensor that a node reads through a pair, and the nodes that make it.
_ReadFunction = Callable[[SwitchablePair], tuple[str, list[NodeProto]]]


class SegmentRunner:
    """The sessions of one segment; each is opened for its first run."""

    def __init__(
        self,
        index: GraphIndex,
        segment: Segment,
        pairs: Sequence[SwitchablePair],
        weights: SharedWeights,
    ) -> None:
        self._index = index
        self._segment = segment
        self._pairs = tuple(pairs)
        self._weight_pairs = tuple(pair for pair in pairs if pair.is_weight)
        self._weights = weights
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = Lock()
        self._bits = {pair.placement: 1 << i for i, pair in enumerate(self._pairs)}
        #: The number that stands for all pairs.
        self.all_pairs = (1 << len(self._pairs)) - 1
        flags = [ort.OrtValue.ortvalue_from_numpy(np.array(value)) for value in (False, True)]
        self._off, self._on = flags

    @property
    def outputs(self) -> tuple[str, ...]:
        """The tensors that a run returns."""
        return self._segment.outputs

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that a run reads."""
        return self._segment.inputs

    @property
    def bits(self) -> Mapping[Placement, int]:
        """The bit that stands for each placement in the number of a part of the pairs."""
        return self._bits

    def run(self, values: Values, part: int) -> list[ort.OrtValue]:
        """Return the outputs, with a part of the pairs.

        `values` has the inputs of the segment. Raises ModelError where ONNX Runtime rejects it.
        """
        inputs = {name: values[name] for name in self._segment.inputs}
        if not part:
            session = self._open("float", self._make_float_model)
        elif part == self.all_pairs:
            session = self._open("all", self._make_quantized_model)
        else:
            session = self._open("part", self._make_switchable_model)
            inputs |= self._make_switches(part)
        outputs: list[ort.OrtValue] = session.run_with_ort_values(list(self.outputs), inputs)
        return outputs

    def _open(self, name: str, make_model: Callable[[], ModelProto]) -> ort.InferenceSession:
        with self._lock:
            if name not in self._sessions:
                rounded = self._round_weights() if name == "all" else {}
                self._sessions[name] = self._weights.open_session(make_model(), rounded)
            return self._sessions[name]

    def _round_weights(self) -> dict[str, ort.OrtValue]:
        """Return the rounded weight of each pair by its name."""
        rounded = self._weights.round(self._weight_pairs)
        names = (pair.input_name for pair in self._weight_pairs)
        return dict(zip(names, rounded, strict=True))

    def _make_switches(self, part: int) -> dict[str, ort.OrtValue]:
        switches = self._round_weights()
        for pair in self._pairs:
            is_on = bool(part & self._bits[pair.placement])
            if not pair.is_weight:
                switches[pair.input_name] = self._on if is_on else self._off
            elif not is_on:
                switches[pair.input_name] = self._weights.read(pair)
        return switches

    def _make_float_model(self) -> ModelProto:
        nodes = [node.proto for node in self._segment.nodes]
        return self._extract(nodes)

    def _make_quantized_model(self) -> ModelProto:
        model = self._make_model(self._read_through_pair)
        declared = map(self._weights.declare_rounded, self._weight_pairs)
        model.graph.initializer.extend(declared)
        return model

    def _make_switchable_model(self) -> ModelProto:
        model = self._make_model(self._read_through_switch)
        model.graph.input.extend(pair.declare_input() for pair in self._pairs)
        return model

    def _make_model(self, read: _ReadFunction) -> ModelProto:
        by_slot = {(pair.edge.graph, pair.edge.node, pair.edge.slot): pair for pair in self._pairs}
        nodes = [node.proto for node in self._segment.nodes]
        return self._extract(_replace_reads(self._index, self._segment.nodes, nodes, by_slot, read))

    def _extract(self, nodes: Iterable[NodeProto]) -> ModelProto:
        declared = self._weights.declared
        return extract_segment(self._index, self._segment, nodes, self.outputs, declared)

    @staticmethod
    def _read_through_pair(pair: SwitchablePair) -> tuple[str, list[NodeProto]]:
        if pair.is_weight:
            return pair.input_name, []
        result = f"{pair.input_name}_value"
        return result, pair.make_nodes(pair.edge.tensor, result)

    @staticmethod
    def _read_through_switch(pair: SwitchablePair) -> tuple[str, list[NodeProto]]:
        if pair.is_weight:
            return pair.input_name, []
        result = f"{pair.input_name}_value"
        return result, [pair.make_switch(pair.edge.tensor, result)]


def _replace_reads(
    index: GraphIndex,
    nodes: Iterable[Node],
    protos: Iterable[NodeProto],
    pairs: Mapping[_Slot, SwitchablePair],
    read: _ReadFunction,
) -> list[NodeProto]:
    """Return copies of nodes that read their quantized inputs through pairs, in bodies too."""
    replaced: list[NodeProto] = []
    for node, proto in zip(nodes, protos, strict=True):
        copy = NodeProto()
        copy.CopyFrom(proto)
        for name, body in node_bodies(copy):
            scope = index.scopes[qualified_name(index.path, f"{node.label}.{name}")]
            inner = _replace_reads(scope, scope.nodes, body.node, pairs, read)
            del body.node[:]
            body.node.extend(inner)
        for slot in range(len(copy.input)):
            pair = pairs.get((index.path, node.label, slot))
            if pair is not None:
                copy.input[slot], added = read(pair)
                replaced.extend(added)
        replaced.append(copy)
    return replaced
