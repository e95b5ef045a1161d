"""Running the float model with the planned tensors as extra outputs: what range each one takes."""

from __future__ import annotations

import os
import re
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
from qdq.errors import DataError, ModelError, runtime_line
from qdq.exposing import Exposed, expose
from qdq.feeds import Feed
from qdq.importance import channel_grades
from qdq.index import Array, Edge, GraphIndex
from qdq.loading import canonical_bytes
from qdq.planning import Plan
from qdq.ranges import TensorRange
from qdq.watching import Key, Look, Wanted, Watch
from qdq.weights import input_channel_axis

#: Called after each sample with the number done.
Progress = Callable[[int], None]
#: Above ONNX Runtime's errors: they come as exceptions too, and standard error is for one line.
_FATAL_LEVEL = 4
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


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
        self._watches = {w.made: Watch(w, flat=w.made in way.flat) for w in sorted(wanted, key=lambda w: w.made)}
        for path, tensor in way.constant if constants else ():
            watch = self._watches[path, tensor]
            watch.take(watch.look(index.scopes[path].constant(tensor)), "the model")

    def run(self, samples: Iterable[tuple[str, Feed]]) -> Iterator[int]:
        """Yield the number of samples seen so far after each.

        Raises DataError where a sample gives NaN or Inf in a tensor that is watched, and ModelError where ONNX Runtime
        refuses the model.
        """
        for done, (where, looks) in enumerate(self._run_all(samples), 1):
            while looks:
                watch, look = looks.pop()
                watch.take(look, where)
            yield done

    def _run_all(self, samples: Iterable[tuple[str, Feed]]) -> Iterator[tuple[str, list[tuple[Watch, Look]]]]:
        """Yield where each sample comes from and its tensors, in order, while the next samples are computed.

        Two samples on half the cores each take less time than one after the other on all of them.
        """
        workers = min(self._running.cores, self._running.at_once)
        session = observing_session(self._way.index, self._way.outputs, self._running)
        with ThreadPoolExecutor(workers) as pool:
            waiting: deque[tuple[str, Future[list[tuple[Watch, Look]]]]] = deque()
            for where, feed in samples:
                waiting.append((where, pool.submit(self._looks, session, feed)))
                if len(waiting) > workers:
                    origin, first = waiting.popleft()
                    yield origin, first.result()
            while waiting:
                origin, first = waiting.popleft()
                yield origin, first.result()

    def _looks(self, session: ort.InferenceSession, feed: Feed) -> list[tuple[Watch, Look]]:
        """Run one sample and look at each tensor that is watched, once for each time that it was computed."""
        seen = run_sample(session, self._way.index, self._way.outputs, feed)
        looks = []
        while seen:  # what a look copied is not held twice
            key, turns = self._way.turns(*seen.pop())
            if watch := self._watches.get(key):
                looks += [(watch, watch.look(turn)) for turn in turns]
        return looks

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
        raise ModelError(f"{index.source.name}: ONNX Runtime cannot run it: {_refusal(error)}") from error


def _refusal(error: Exception) -> str:
    """Return why ONNX Runtime refuses a model, and the way out."""
    says = runtime_line(error).rstrip(".")
    if newest := re.search(r"Current official support for domain \S+ is till opset (\d+)", says):
        return f"its opset is newer than {newest[1]}, the last that this version takes; export it with that or an older one, or install a newer onnxruntime"
    return f"{says}; export it so that it runs there"


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


def observing_session(index: GraphIndex, computed: list[str], running: Running) -> ort.InferenceSession:
    """Return a session that gives some tensors too, for several samples at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(running.cores // min(running.cores, running.at_once), 1)
    return open_session(index, computed, options, running.providers)


def run_sample(session: ort.InferenceSession, index: GraphIndex, computed: list[str], feed: Feed) -> list[tuple[str, Array]]:
    """Return some outputs of one run, and what it was fed; raises DataError where ONNX Runtime fails."""
    try:
        given = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in feed.items()}
        results = session.run_with_ort_values(computed, given) if computed else []
        return [*zip(computed, map(_shared, results), strict=True), *feed.items()]
    except Exception as error:
        raise DataError(f"{index.source.name}: ONNX Runtime failed on a sample: {runtime_line(error).rstrip('.')}; check the shapes of the data") from error


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
