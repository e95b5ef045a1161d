"""Running the float model with the planned tensors as extra outputs: what range each one takes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import onnxruntime as ort

from qdq.arrays import Array, Feed
from qdq.graph.index import Edge, GraphIndex
from qdq.graph.operands import input_channel_axis
from qdq.observers.body_outputs import ExposedTensor, expose_body_tensors
from qdq.observers.tensor_statistics import (
    ObservedTensor,
    SampleStatistics,
    TensorKey,
    TensorStatistics,
)
from qdq.planning.decisions import Plan
from qdq.ranges.channel_importance import channel_grades
from qdq.ranges.tensor_ranges import TensorRange
from qdq.runtime.devices import CPU
from qdq.runtime.session import open_session, run_sample


def list_observed_tensors(index: GraphIndex, plan: Plan, full: bool) -> tuple[ObservedTensor, ...]:
    """Return every activation that the plan quantizes; `full` adds histograms, and the moments of what is multiplied with weights."""
    made = {
        p.edge.qualified_tensor: _made(index, p.edge)
        for p in plan.placements
        if p.quantizer.calibrated
    }
    axes = _summed_axes(index, plan) if full else {}
    grades = (
        {path: channel_grades(index.scopes[path]) for path in {path for path, _ in made.values()}}
        if full
        else {}
    )
    index.forget_constants()
    return tuple(
        ObservedTensor(read, key, full, axes.get(key), grades[key[0]].get(key[1]) if full else None)
        for read, key in sorted(made.items())
    )


class RunSettings(msgspec.Struct, frozen=True):
    """How samples are run."""

    #: ONNX Runtime's names of execution providers.
    providers: tuple[str, ...] = CPU
    cores: int = os.cpu_count() or 1
    #: Samples that are computed side by side.
    at_once: int = 2

    @property
    def held(self) -> int:
        """Samples whose tensors are in memory at the same time: one more than is computed, so that no core waits while one is looked at."""
        return self.at_once + 1


DEFAULT_RUN = RunSettings()


class Observer:
    """Runs the float model over samples and watches some of its tensors; a few samples are held at a time."""

    def __init__(
        self,
        index: GraphIndex,
        wanted: Sequence[ObservedTensor],
        running: RunSettings = DEFAULT_RUN,
        constants: bool = True,
    ) -> None:
        """`constants` tells whether tensors that no sample changes are seen too: once in all parts of a run."""
        self._wanted, self._running = wanted, running
        way = self._way = _way(index, {w.source for w in wanted})
        self._watches = {
            w.source: TensorStatistics(w, flat=w.source in way.flat)
            for w in sorted(wanted, key=lambda w: w.source)
        }
        for path, tensor in way.constant if constants else ():
            watch = self._watches[path, tensor]
            watch.add(watch.measure(index.scopes[path].constant(tensor)), "the model")

    def run(self, samples: Iterable[tuple[str, Feed]]) -> Iterator[int]:
        """Yield the number of samples seen so far after each.

        Raises DataError where a sample gives NaN or Inf in a tensor that is watched, and ModelError where ONNX Runtime
        refuses the model.
        """
        for done, (where, looks) in enumerate(self._run_all(samples), 1):
            while looks:
                watch, look = looks.pop()
                watch.add(look, where)
            yield done

    def _run_all(
        self, samples: Iterable[tuple[str, Feed]]
    ) -> Iterator[tuple[str, list[tuple[TensorStatistics, SampleStatistics]]]]:
        """Yield where each sample comes from and its tensors, in order, while the next samples are computed.

        Two samples on half the cores each take less time than one after the other on all of them.
        """
        workers = min(self._running.cores, self._running.at_once)
        session = open_observing_session(self._way.index, self._way.outputs, self._running)
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[tuple[str, Future[list[tuple[TensorStatistics, SampleStatistics]]]]] = (
                deque()
            )
            for where, feed in samples:
                waiting.append((where, pool.submit(self._looks, session, feed)))
                if len(waiting) > workers:
                    origin, first = waiting.popleft()
                    yield origin, first.result()
            while waiting:
                origin, first = waiting.popleft()
                yield origin, first.result()

    def _looks(
        self, session: ort.InferenceSession, feed: Feed
    ) -> list[tuple[TensorStatistics, SampleStatistics]]:
        """Run one sample and look at each tensor that is watched, once for each time that it was computed."""
        seen = run_sample(session, self._way.index, self._way.outputs, feed)
        looks = []
        while seen:  # what a look copied is not held twice
            key, turns = self._way.turns(*seen.pop())
            if watch := self._watches.get(key):
                looks += [(watch, watch.measure(turn)) for turn in turns]
        return looks

    def by_tensor(self) -> tuple[TensorRange, ...]:
        """Return what the tensors have held so far."""
        return tuple(self._watches[w.source].to_range(w.read) for w in self._wanted)


@dataclass(frozen=True)
class _Way:
    """How tensors are observed: the model that is run, and its further outputs."""

    index: GraphIndex
    outputs: list[str]
    #: The outputs that come from bodies.
    exposed: dict[str, ExposedTensor]
    #: Tensors that need no run.
    constant: tuple[TensorKey, ...]

    @property
    def flat(self) -> set[TensorKey]:
        """The tensors that come as vectors, so that their channels are not known."""
        return {(e.graph, e.tensor) for e in self.exposed.values() if e.flat}

    def turns(self, name: str, values: Array) -> tuple[TensorKey, Iterable[Array]]:
        """Return which tensor an output is, and what it held each time that it was computed."""
        given = self.exposed.get(name)
        return (
            ((given.graph, given.tensor), given.turns(values)) if given else (("", name), (values,))
        )


def _way(index: GraphIndex, tensors: set[TensorKey]) -> _Way:
    constant = {key for key in tensors if index.scopes[key[0]].is_constant(key[1])}
    computed = sorted(
        tensor for path, tensor in tensors - constant if not path and tensor not in index.inputs
    )
    inside = sorted(key for key in tensors - constant if key[0])
    if not inside:
        return _Way(index, computed, {}, tuple(constant))
    source, exposed = expose_body_tensors(index, inside)
    return _Way(GraphIndex(source), [*computed, *exposed], exposed, tuple(constant))


def _made(index: GraphIndex, edge: Edge) -> TensorKey:
    """Return the path of the graph that makes what an edge reads, and its name."""
    return index.scope(edge).defining_scope(edge.tensor).path, edge.tensor


def open_observing_session(
    index: GraphIndex, computed: list[str], running: RunSettings
) -> ort.InferenceSession:
    """Return a session that gives some tensors too, for several samples at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(running.cores // min(running.cores, running.at_once), 1)
    return open_session(index, computed, options, running.providers)


def _summed_axes(index: GraphIndex, plan: Plan) -> dict[TensorKey, int]:
    """Map each tensor that is multiplied with a constant weight to the axis that is summed over, where its readers agree on one."""
    axes: dict[TensorKey, set[int]] = {}
    for placement in plan.placements:
        edge, node = placement.edge, index.node(placement.edge)
        if placement.quantizer.axis is not None and edge.slot == 1:
            axis = input_channel_axis(index.scope(edge), node)
            if axis is not None:
                axes.setdefault(
                    (index.scope(edge).defining_scope(node.inputs[0]).path, node.inputs[0]), set()
                ).add(axis)
    return {key: next(iter(found)) for key, found in axes.items() if len(found) == 1}
