"""Running the float model with the planned tensors as extra outputs: what range each one takes."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from qdq.devices import CPU
from qdq.errors import DataError, ModelError, first_line
from qdq.exactsum import ExactSum
from qdq.exposing import Exposed, expose
from qdq.feeds import Feed
from qdq.histogram import Histogram
from qdq.importance import Grades, channel_grades
from qdq.index import Array, Edge, GraphIndex
from qdq.loading import canonical_bytes
from qdq.planning import Plan
from qdq.ranges import Moments, TensorRange
from qdq.weights import input_channel_axis

#: Called after each sample with the number done.
Progress = Callable[[int], None]
#: A tensor: the path of the graph that makes it, and its name.
Key = tuple[str, str]

#: Above ONNX Runtime's errors: they come as exceptions too, and standard error is for one line.
_FATAL_LEVEL = 4
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class Wanted:
    """A tensor that is observed, and what of it."""

    #: Its name as `Edge.read` gives it.
    read: str
    made: Key
    histogram: bool
    #: The axis whose channels are summed, where its moments are wanted.
    axis: int | None
    #: How much its channels matter, where that differs.
    grades: Grades | None


def wanted_tensors(index: GraphIndex, plan: Plan, full: bool) -> tuple[Wanted, ...]:
    """Return every activation that the plan quantizes; `full` adds histograms, and the moments of what is multiplied with weights."""
    made = {p.edge.read: _made(index, p.edge) for p in plan.placements if p.quantizer.calibrated}
    axes = _summed_axes(index, plan) if full else {}
    grades = {path: channel_grades(index.scopes[path]) for path in {path for path, _ in made.values()}} if full else {}
    index.forget_constants()
    return tuple(Wanted(read, key, full, axes.get(key), grades[key[0]].get(key[1]) if full else None) for read, key in sorted(made.items()))


class Running(msgspec.Struct, frozen=True):
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


RUNNING = Running()


class Observer:
    """Runs the float model over samples and watches some of its tensors; a few samples are held at a time."""

    def __init__(self, index: GraphIndex, wanted: Sequence[Wanted], running: Running = RUNNING, constants: bool = True) -> None:
        """`constants` tells whether tensors that no sample changes are seen too: once in all parts of a run."""
        self._wanted, self._running = wanted, running
        way = self._way = _way(index, {w.made for w in wanted})
        self._watches = {w.made: _Watch(w, flat=w.made in way.flat) for w in sorted(wanted, key=lambda w: w.made)}
        for path, tensor in way.constant if constants else ():
            self._watches[path, tensor].see(index.scopes[path].constant(tensor), "the model")

    def run(self, samples: Iterable[tuple[str, Feed]]) -> Iterator[int]:
        """Yield the number of samples seen so far after each.

        Raises DataError where a sample gives NaN or Inf in a tensor that is watched, and ModelError where ONNX Runtime
        refuses the model.
        """
        for done, (where, seen) in enumerate(_run_all(self._way.index, self._way.outputs, samples, self._running), 1):
            while seen:
                key, turns = self._way.turns(*seen.pop())
                for turn in turns if key in self._watches else ():
                    self._watches[key].see(turn, where)
            yield done

    def by_tensor(self) -> tuple[TensorRange, ...]:
        """Return what the tensors have held so far."""
        return tuple(self._watches[w.made].range(w.read) for w in self._wanted)


@dataclass(frozen=True)
class _Way:
    """How tensors are observed: the model that is run, and its further outputs."""

    index: GraphIndex
    outputs: list[str]
    #: The outputs that come from bodies.
    exposed: dict[str, Exposed]
    #: Tensors that need no run.
    constant: tuple[Key, ...]

    @property
    def flat(self) -> set[Key]:
        """The tensors that come as vectors, so that their channels are not known."""
        return {(e.graph, e.tensor) for e in self.exposed.values() if e.flat}

    def turns(self, name: str, values: Array) -> tuple[Key, Iterable[Array]]:
        """Return which tensor an output is, and what it held each time that it was computed."""
        given = self.exposed.get(name)
        return ((given.graph, given.tensor), given.turns(values)) if given else (("", name), (values,))


def _way(index: GraphIndex, tensors: set[Key]) -> _Way:
    constant = {key for key in tensors if index.scopes[key[0]].is_constant(key[1])}
    computed = sorted(tensor for path, tensor in tensors - constant if not path and tensor not in index.inputs)
    inside = sorted(key for key in tensors - constant if key[0])
    if not inside:
        return _Way(index, computed, {}, tuple(constant))
    source, exposed = expose(index, inside)
    return _Way(GraphIndex(source), [*computed, *exposed], exposed, tuple(constant))


def _made(index: GraphIndex, edge: Edge) -> Key:
    """Return the path of the graph that makes what an edge reads, and its name."""
    return index.scope(edge).defining(edge.tensor).path, edge.tensor


def open_session(
    index: GraphIndex, extra_outputs: list[str], options: ort.SessionOptions | None = None, providers: Sequence[str] = CPU
) -> ort.InferenceSession:
    """Return an ONNX Runtime session of a model that also gives the named tensors; raises ModelError where it is refused."""
    options = options or ort.SessionOptions()
    options.log_severity_level = _FATAL_LEVEL
    model = index.source.model
    if index.source.folder is not None and index.source.external_files:
        options.add_session_config_entry(_EXTERNAL_FOLDER, str(index.source.folder.resolve()))
    addition = onnx.ModelProto(graph=onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in index.outputs]))
    named = _uniquely_named(model)
    try:
        content = index.source.bytes_with(addition) if named is model else canonical_bytes(named) + addition.SerializeToString()
        return ort.InferenceSession(content, options, providers=list(providers))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{index.source.name}: ONNX Runtime cannot run it: {first_line(error)}") from error


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
    options.add_session_config_entry("optimization.disable_specified_optimizers", "ReluQuantRewrite;ClipQuantRewrite")
    return options


def _run_all(index: GraphIndex, computed: list[str], samples: Iterable[tuple[str, Feed]], running: Running) -> Iterator[tuple[str, list[tuple[str, Array]]]]:
    """Yield where each sample comes from and its tensors, in order, while the next samples are computed.

    Two samples on half the cores each take less time than one after the other on all of them.
    """
    workers = min(running.cores, running.at_once)
    session = observing_session(index, computed, running)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[tuple[str, Future[list[tuple[str, Array]]]]] = deque()
        for where, feed in samples:
            waiting.append((where, pool.submit(run_sample, session, index, computed, feed)))
            if len(waiting) > workers:
                origin, first = waiting.popleft()
                yield origin, first.result()
        while waiting:
            origin, first = waiting.popleft()
            yield origin, first.result()


def observing_session(index: GraphIndex, computed: list[str], running: Running) -> ort.InferenceSession:
    """Return a session that gives some tensors too, for several samples at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(running.cores // min(running.cores, running.at_once), 1)
    # Blocked layouts, the level above, would be undone for every tensor that is observed, and keep all weights twice.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return open_session(index, computed, options, running.providers)


def run_sample(session: ort.InferenceSession, index: GraphIndex, computed: list[str], feed: Feed) -> list[tuple[str, Array]]:
    """Return some outputs of one run, and what it was fed; raises DataError where ONNX Runtime fails."""
    try:
        given = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in feed.items()}
        results = session.run_with_ort_values(computed, given) if computed else []
        return [*zip(computed, map(_shared, results), strict=True), *feed.items()]
    except Exception as error:
        raise DataError(f"{index.source.name}: ONNX Runtime failed on a sample: {first_line(error)}; check the shapes of the data") from error


def _shared(value: ort.OrtValue) -> Array:
    """Return a result without copying it, where this ONNX Runtime lends its memory."""
    lender: Any = getattr(value, "_ortvalue", None)
    return np.from_dlpack(lender) if hasattr(lender, "__dlpack__") else np.asarray(value.numpy())


def _summed_axes(index: GraphIndex, plan: Plan) -> dict[Key, int]:
    """Map each tensor that is multiplied with a constant weight to the axis that is summed over, where its readers agree on one."""
    axes: dict[Key, set[int]] = {}
    for placement in plan.placements:
        edge, node = placement.edge, index.node(placement.edge)
        if placement.quantizer.axis is not None and edge.slot == 1:
            axis = input_channel_axis(index.scope(edge), node)
            if axis is not None:
                axes.setdefault((index.scope(edge).defining(node.inputs[0]).path, node.inputs[0]), set()).add(axis)
    return {key: next(iter(found)) for key, found in axes.items() if len(found) == 1}


class _Watch:
    """What one tensor has held so far."""

    def __init__(self, wanted: Wanted, flat: bool) -> None:
        """`flat` tells that the tensor comes as a vector, so that its channels are not known."""
        self.tensor = wanted.made[1]
        self.seen = False
        self.amax = 0.0
        self.axis = None if flat else wanted.axis
        self.grades = None if flat else wanted.grades
        grades = sorted(set(self.grades.of_channel)) if self.grades else [0]
        self.histograms = {grade: Histogram() for grade in grades} if wanted.histogram else {}
        self.channels = {grade: np.flatnonzero(np.array(self.grades.of_channel) == grade) for grade in grades} if self.grades else {}
        self.count = 0
        self.sums: ExactSum | None = None
        self.squares: ExactSum | None = None
        self.lost = False

    def see(self, values: Array, where: str) -> None:
        if values.dtype.kind != "f":
            raise ModelError(f"tensor {self.tensor!r} holds {values.dtype} and cannot be quantized; narrow the rule that asks for it")
        largest = float(max(values.max(initial=0), -values.min(initial=0)))
        if not np.isfinite(largest):
            raise DataError(f"{where}: tensor {self.tensor!r} becomes NaN or Inf; mend the data or leave its readers in float")
        self.seen, self.amax = True, max(self.amax, largest)
        if self.histograms:
            self._count(values, largest)
        if self.axis is not None:
            self._add_moments(values, self.axis)

    def _count(self, values: Array, largest: float) -> None:
        grades = self.grades
        if grades is None or values.ndim <= grades.axis or values.shape[grades.axis] != len(grades.of_channel):
            self.histograms[min(self.histograms)].add(values, largest)
            return
        for grade, channels in self.channels.items():
            self.histograms[grade].add(values.take(channels, grades.axis))

    def _add_moments(self, values: Array, axis: int) -> None:
        if not values.size:
            return
        sums, squares = channel_sums(values, axis)
        if self.sums is None or self.squares is None:
            self.sums, self.squares = ExactSum(sums.shape[1]), ExactSum(sums.shape[1])
        alike = self.sums.size == sums.shape[1]
        if not (alike and np.isfinite(sums).all() and np.isfinite(squares).all()):
            self.lost = True
            return
        self.count += values.size // sums.shape[1]
        self.sums.add(sums)
        self.squares.add(squares)

    def range(self, read: str) -> TensorRange:
        whole = functools.reduce(Histogram.merged, self.histograms.values()) if self.histograms else None
        by_grade = tuple(self.histograms.items()) if self.grades and self.histograms else ()
        return TensorRange(read, self.amax, whole, self._moments(), self.seen, self.lost, by_grade)

    def _moments(self) -> Moments | None:
        if self.sums is None or self.squares is None or self.lost:
            return None
        return Moments(self.count, self.sums, self.squares)


def channel_sums(values: Array, axis: int) -> tuple[Array, Array]:
    """Return the sums of values and of their squares along a channel axis, float32 [entries, channels], entries being those of axis 0.

    An entry's sums do not depend on the entries it comes with.
    """
    channels = np.moveaxis(values, axis, 1) if values.ndim > 1 else values[None, :]
    rows = channels.reshape(len(channels), channels.shape[1], -1).astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        return rows.sum(axis=2), np.einsum("nct,nct->nc", rows, rows)
