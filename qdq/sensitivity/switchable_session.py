"""A model in ONNX Runtime in which each pair of a plan can be switched on and off.

It runs as segments, one after another. What all pairs or none leave between two segments is kept
for each sample, so that a run which differs from it only in a later segment begins there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qdq.arrays import Array, Feed
from qdq.calibration.scales import Scales
from qdq.graph.index import GraphIndex
from qdq.optional_packages import onnxruntime as ort
from qdq.planning.decisions import Placement, Plan
from qdq.runtime.session import sample_errors
from qdq.sensitivity.graph_segments import split_graph
from qdq.sensitivity.shared_weights import SharedWeights
from qdq.sensitivity.switchable_pairs import SwitchablePair, list_switchable_pairs
from qdq.sensitivity.switchable_segment import SegmentRunner, Values

#: Segments at most, and the least number of nodes with pairs in one.
_MOST_SEGMENTS = 16
_LEAST_NODES = 4

#: The most bytes of tensors between segments that are kept.
_MOST_KEPT_BYTES = 1 << 28

#: Bytes of an element, for an estimate: most tensors are float32.
_ELEMENT_BYTES = 4

_NO_PAIRS, _ALL_PAIRS = "none", "all"

#: A sample, the number of a segment, and whether the pairs before it are all on or off.
_StateKey = tuple[int, int, str]


class SwitchableSession:
    """Runs of a model with any part of the pairs of a plan."""

    def __init__(
        self,
        index: GraphIndex,
        plan: Plan,
        scales: Scales,
        outputs: Sequence[str],
        libraries: Iterable[Path] = (),
    ) -> None:
        """Prepare the segments; ONNX Runtime opens each for its first run."""
        self._index = index
        self._outputs = list(outputs)
        pairs = list(list_switchable_pairs(index, plan, scales))
        self._runners = tuple(_open_runners(index, pairs, outputs, SharedWeights(index, libraries)))
        self._last_reads = _find_last_reads(self._runners, outputs)
        self._parts: dict[frozenset[Placement], tuple[int, ...]] = {}
        self._states: dict[_StateKey, Values] = {}
        self._kept_bytes = 0

    def run(
        self, feed: Feed, quantized: Collection[Placement], sample: int | None = None
    ) -> list[Array]:
        """Return the outputs for a sample, with the pairs of some placements.

        `sample` is a number of the sample under which its tensors are kept for other runs. Raises
        ModelError where ONNX Runtime rejects the model, and DataError where it fails.
        """
        parts = self._find_parts(frozenset(quantized))
        inputs: dict[str, ort.OrtValue] = {}
        for name, array in feed.items():
            inputs[name] = ort.OrtValue.ortvalue_from_numpy(array)
        first, state = self._find_start(sample, parts)
        with sample_errors(self._index):
            for number in range(first, len(self._runners)):
                runner = self._runners[number]
                results = runner.run({**inputs, **state}, parts[number])
                state = self._list_live(
                    number + 1, state, zip(runner.outputs, results, strict=True)
                )
                self._keep(sample, number + 1, parts, state)
            values = {**inputs, **state}
            arrays = {name: self._read_output(name, values) for name in self._outputs}
            return [arrays[name] for name in self._outputs]

    def _find_parts(self, quantized: frozenset[Placement]) -> tuple[int, ...]:
        """Return for each segment the number of its part of the pairs."""
        if quantized not in self._parts:
            parts: list[int] = []
            for runner in self._runners:
                bits = (bit for placement, bit in runner.bits.items() if placement in quantized)
                parts.append(sum(bits))
            self._parts[quantized] = tuple(parts)
        return self._parts[quantized]

    def _find_start(self, sample: int | None, parts: Sequence[int]) -> tuple[int, Values]:
        """Return the first segment to run, and the tensors that earlier ones left."""
        if sample is not None:
            for number in range(len(self._runners), 0, -1):
                state = self._states.get((sample, number, self._describe_before(number, parts)))
                if state is not None:
                    return number, state
        return 0, {}

    def _describe_before(self, number: int, parts: Sequence[int]) -> str:
        """Return whether no or all pairs before a segment are on, "" for another part of them."""
        before = range(number)
        if not any(parts[i] for i in before):
            return _NO_PAIRS
        if all(parts[i] == self._runners[i].all_pairs for i in before):
            return _ALL_PAIRS
        return ""

    def _list_live(
        self, number: int, state: Values, results: Iterable[tuple[str, ort.OrtValue]]
    ) -> Values:
        """Return the tensors that a segment or a later one reads, and the outputs."""
        live: dict[str, ort.OrtValue] = {}
        for name, value in (*state.items(), *results):
            if self._last_reads.get(name, -1) >= number:
                live[name] = value
        return live

    def _keep(self, sample: int | None, number: int, parts: Sequence[int], state: Values) -> None:
        description = self._describe_before(number, parts)
        key = (sample or 0, number, description)
        if sample is None or not description or key in self._states:
            return
        size = sum(map(_estimate_bytes, state.values()))
        if self._kept_bytes + size <= _MOST_KEPT_BYTES:
            self._kept_bytes += size
            self._states[key] = state

    def _read_output(self, name: str, values: Values) -> Array:
        if name in values:
            return np.asarray(values[name].numpy())
        return self._index.constant(name)


def _open_runners(
    index: GraphIndex,
    pairs: Sequence[SwitchablePair],
    outputs: Iterable[str],
    weights: SharedWeights,
) -> Iterator[SegmentRunner]:
    """Yield the segments in order, each with its pairs."""
    by_position: dict[int, list[SwitchablePair]] = {}
    for pair in pairs:
        by_position.setdefault(_find_position(index, pair), []).append(pair)
    count = max(1, min(_MOST_SEGMENTS, len(by_position) // _LEAST_NODES))
    for segment in split_graph(index, outputs, by_position, count):
        selected: list[SwitchablePair] = []
        for node in segment.nodes:
            selected += by_position.get(node.position, [])
        yield SegmentRunner(index, segment, selected, weights)


def _find_position(index: GraphIndex, pair: SwitchablePair) -> int:
    """Return the position in the main graph of the node that has a pair, itself or in a body."""
    scope = index.scope(pair.edge)
    position = index.node(pair.edge).position
    while scope.outer is not None and scope.owner is not None:
        position = scope.owner.position
        scope = scope.outer
    return position


def _find_last_reads(runners: Sequence[SegmentRunner], outputs: Iterable[str]) -> dict[str, int]:
    """Return the number of the last segment that reads each tensor; outputs are read at the end."""
    last_reads: dict[str, int] = {}
    for number, runner in enumerate(runners):
        for name in runner.inputs:
            last_reads[name] = number
    return last_reads | dict.fromkeys(outputs, len(runners))


def _estimate_bytes(value: ort.OrtValue) -> int:
    return math.prod(value.shape()) * _ELEMENT_BYTES if value.is_tensor() else 0
