"""Running the float model with the planned tensors as extra outputs: what range each one takes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort

from qdq.errors import DataError, ModelError, first_line
from qdq.exactsum import ExactSum
from qdq.exposing import Exposed, expose
from qdq.feeds import Feeds
from qdq.histogram import Histogram
from qdq.index import Array, Edge, Floats, GraphIndex
from qdq.loading import canonical_bytes
from qdq.planning import Plan
from qdq.weights import input_channel_axis

#: Called after each sample with the number done.
Progress = Callable[[int], None]
#: A tensor: the path of the graph that makes it, and its name.
Key = tuple[str, str]

#: Above ONNX Runtime's errors: they come as exceptions too, and standard error is for one line.
_FATAL_LEVEL = 4
#: Samples that are computed side by side.
_AT_ONCE = 2
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class Moments(msgspec.Struct, frozen=True):
    """What the channels of a tensor add up to, exactly: the same whatever the order of the samples."""

    #: How many values each channel held.
    count: int
    sums: ExactSum
    squares: ExactSum

    @property
    def mean(self) -> Floats:
        """The mean of each channel, a float64 vector."""
        return self.sums.divided(self.count)

    @property
    def variance(self) -> Floats:
        """The variance of each channel, a float64 vector."""
        return np.maximum(self.squares.divided(self.count) - self.mean**2, 0.0)


class TensorRange(msgspec.Struct, frozen=True):
    """What one tensor was seen to hold."""

    #: Its name as `Edge.read` gives it.
    tensor: str
    #: The largest absolute value.
    amax: float
    #: Counts of absolute values, where the method needs them.
    histogram: Histogram | None = None
    #: For the input of a layer with a constant weight: what its channels hold.
    moments: Moments | None = None


class Ranges(msgspec.Struct, frozen=True):
    """What every planned activation was seen to hold."""

    #: `Plan.key` of the plan whose tensors were observed.
    plan: str
    #: What the data was, and how many samples of it were run.
    data: str
    samples: int
    by_tensor: tuple[TensorRange, ...]
    #: How many entries one sample held, as ``8`` or ``1 to 8``; empty where that is not known.
    batch: str = ""


def observe(index: GraphIndex, plan: Plan, feeds: Feeds, full: bool, progress: Progress | None = None) -> Ranges:
    """Return the range of every activation the plan quantizes, over all samples; a few are held at a time.

    `full` adds histograms, and the moments of what is multiplied with weights, to the largest values.

    Raises DataError where a sample gives NaN or Inf in a planned tensor, or where no sample runs a
    body with one, and ModelError where ONNX Runtime refuses the model.
    """
    made = {p.edge.read: _made(index, p.edge) for p in plan.placements if p.quantizer.calibrated}
    way = _way(index, set(made.values()))
    axes = _summed_axes(index, plan) if full else {}
    watches = {key: _Watch(key[1], full, axes.get(key) if key not in way.flat else None) for key in sorted(made.values())}
    for path, tensor in way.constant:
        watches[path, tensor].see(index.scopes[path].constant(tensor), "the model")
    samples = 0
    for seen in _run_all(way.index, way.outputs, feeds):
        while seen:
            key, turns = way.turns(*seen.pop())
            for turn in turns if key in watches else ():
                watches[key].see(turn, f"{feeds.name} sample {samples}")
        samples += 1
        if progress:
            progress(samples)
    _refuse_unseen(watches, feeds)
    return Ranges(plan.key, feeds.name, samples, tuple(watches[made[read]].range(read) for read in sorted(made)), feeds.batch)


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


def _refuse_unseen(watches: Mapping[Key, _Watch], feeds: Feeds) -> None:
    for (path, tensor), watch in watches.items():
        if path and not watch.seen:
            raise DataError(
                f"{feeds.name}: no sample runs the body {path}, so {tensor!r} has no range; give data that does, or leave it in float: --leave-float '{path}/*'"
            )


def open_session(index: GraphIndex, extra_outputs: list[str], options: ort.SessionOptions | None = None) -> ort.InferenceSession:
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
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
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


def _run_all(index: GraphIndex, computed: list[str], feeds: Feeds) -> Iterator[list[tuple[str, Array]]]:
    """Yield the tensors of each sample, in order, while the next samples are computed.

    Two samples on half the cores each take less time than one after the other on all of them.
    """
    cores = os.cpu_count() or 1
    workers = min(cores, _AT_ONCE)
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(cores // workers, 1)
    # Blocked layouts, the level above, would be undone for every tensor that is observed, and keep all weights twice.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = open_session(index, computed, options)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[tuple[str, Array]]]] = deque()
        for feed in feeds:
            waiting.append(pool.submit(_run, session, index, computed, feed))
            if len(waiting) > workers:  # one more than is computed, so that no core waits while a sample is looked at
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _run(session: ort.InferenceSession, index: GraphIndex, computed: list[str], feed: dict[str, Array]) -> list[tuple[str, Array]]:
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

    def __init__(self, tensor: str, histogram: bool, axis: int | None = None) -> None:
        self.tensor = tensor
        self.seen = False
        self.amax = 0.0
        self.histogram = Histogram() if histogram else None
        self.axis = axis
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
        if self.histogram is not None:
            self.histogram.add(values)
        if self.axis is not None:
            self._add_moments(values, self.axis)

    def _add_moments(self, values: Array, axis: int) -> None:
        if not values.size:
            return
        sums, squares = channel_sums(values, axis)
        if self.sums is None or self.squares is None:
            self.sums, self.squares = ExactSum(sums.shape[1]), ExactSum(sums.shape[1])
        alike = self.sums.limbs.shape[1] == sums.shape[1]
        if not (alike and np.isfinite(sums).all() and np.isfinite(squares).all()):
            self.lost = True
            return
        self.count += values.size // sums.shape[1]
        self.sums.add(sums)
        self.squares.add(squares)

    def range(self, read: str) -> TensorRange:
        return TensorRange(read, self.amax, self.histogram, self._moments())

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
