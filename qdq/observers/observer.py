"""Running the float model with the planned tensors as extra outputs, and measuring them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from qdq.arrays import Array, Feed
from qdq.cores import count_cores
from qdq.errors import ModelError
from qdq.graph.aliases import find_origin
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex
from qdq.graph.operands import input_channel_axis
from qdq.observers.body_outputs import ExposedTensor, expose_body_tensors
from qdq.observers.tensor_statistics import (
    ObservedTensor,
    SampleStatistics,
    TensorKey,
    TensorStatistics,
)
from qdq.optional_packages import onnxruntime as ort
from qdq.planning.decisions import Placement, Plan
from qdq.ranges.channel_importance import ChannelGrades, channel_grades
from qdq.ranges.tensor_ranges import TensorRange
from qdq.runtime.devices import CPU
from qdq.runtime.session import open_partial_session, open_session, run_sample
from qdq.runtime.timed_session import stop_on_error
from qdq.runtime.unknown_operators import find_unknown_operators

#: What was measured in a sample, with the statistics that it is added to.
_Measured: TypeAlias = list[tuple[TensorStatistics, SampleStatistics]]


def list_observed_tensors(
    index: GraphIndex, plan: Plan, needs_histogram: bool
) -> tuple[ObservedTensor, ...]:
    """Return every activation that the plan quantizes.

    `needs_histogram` adds histograms, and moments of the tensors that are multiplied with weights.
    """
    sources: dict[str, TensorKey] = {}
    for placement in plan.placements:
        if placement.quantizer.calibrated:
            sources[placement.edge.qualified_tensor] = _find_source(
                index.scope(placement.edge), placement.edge.tensor
            )
    axes: dict[TensorKey, int] = {}
    grades: dict[TensorKey, ChannelGrades] = {}
    if needs_histogram:
        axes = _find_summed_axes(index, plan)
        views = CompilerView(index).scopes
        for path in {path for path, _ in sources.values()}:
            for tensor, tensor_grades in channel_grades(views[path]).items():
                grades[path, tensor] = tensor_grades
    index.forget_constants()
    observed: list[ObservedTensor] = []
    for read, source in sorted(sources.items()):
        observed.append(
            ObservedTensor(read, source, needs_histogram, axes.get(source), grades.get(source))
        )
    return tuple(observed)


class RunSettings(msgspec.Struct, frozen=True):
    """How samples are run."""

    #: ONNX Runtime's names of execution providers.
    providers: tuple[str, ...] = CPU
    cores: int = msgspec.field(default_factory=count_cores)
    #: The number of samples that are computed at the same time.
    parallel_samples: int = 2
    #: Libraries of custom operators.
    libraries: tuple[Path, ...] = ()

    @property
    def samples_in_memory(self) -> int:
        """The number of samples whose tensors are in memory at the same time.

        One more than is computed, so that no core waits while a sample is measured.
        """
        return self.parallel_samples + 1


DEFAULT_RUN = RunSettings()


class Observer:
    """Runs the float model over samples and observes some of its tensors.

    A few samples are in memory at a time.
    """

    def __init__(
        self,
        index: GraphIndex,
        observed: Sequence[ObservedTensor],
        settings: RunSettings = DEFAULT_RUN,
        constants: bool = True,
    ) -> None:
        """`constants` adds the tensors that no sample changes: once in all parts of a run."""
        self._observed = observed
        self._settings = settings
        #: The samples that are begun and not done.
        self._pending: deque[tuple[str, Future[_Measured]]] = deque()
        self._model = build_observed_model(index, {tensor.source for tensor in observed})
        flat = self._model.flat_tensors
        self._statistics: dict[TensorKey, TensorStatistics] = {}
        for tensor in sorted(observed, key=lambda tensor: tensor.source):
            is_flat = tensor.source in flat
            self._statistics[tensor.source] = TensorStatistics(tensor, is_flat)
        if constants:
            self._add_constants(index)

    def _add_constants(self, index: GraphIndex) -> None:
        for path, tensor in self._model.constants:
            statistics = self._statistics[path, tensor]
            values = index.scopes[path].constant(tensor)
            sample = statistics.measure(values)
            if sample is not None:
                statistics.add(sample, "the model")

    def run(
        self,
        samples: Iterable[tuple[str, Feed]],
        must_settle: Callable[[], bool] = lambda: False,
    ) -> Iterator[int]:
        """Yield the number of samples that are done after each.

        The statistics may hold a part of the samples after those. Where `must_settle`, no further
        one is begun until all are done, and `is_settled` tells when.
        Raises DataError where a sample gives NaN or Inf in an observed tensor, and ModelError where
        ONNX Runtime refuses the model.
        """
        for done, (name, measured) in enumerate(self._measure_all(samples, must_settle), 1):
            while measured:
                statistics, sample = measured.pop()
                statistics.add(sample, name)
            yield done

    @property
    def is_settled(self) -> bool:
        """Whether the statistics are those of the samples that are done, and of no other."""
        return not self._pending

    def _measure_all(
        self, samples: Iterable[tuple[str, Feed]], must_settle: Callable[[], bool]
    ) -> Iterator[tuple[str, _Measured]]:
        """Yield the name of each sample and those of its statistics that are to be added, in order.

        The next samples are computed meanwhile: two samples on half the cores each take less time
        than one after the other on all of them.
        """
        settings = self._settings
        workers = min(settings.cores, settings.parallel_samples)
        session = open_observing_session(self._model.index, self._model.outputs, settings)
        pending = self._pending
        with ThreadPoolExecutor(workers) as pool, stop_on_error(session):
            for name, feed in samples:
                future = pool.submit(self._measure_sample, session, feed)
                pending.append((name, future))
                most = 0 if must_settle() else workers
                while len(pending) > most:
                    yield self._await_first()
            while pending:
                yield self._await_first()

    def _await_first(self) -> tuple[str, _Measured]:
        """Return the name of the first sample that is not done, and what was measured in it."""
        name, future = self._pending.popleft()
        return name, future.result()

    def _measure_sample(self, session: ort.InferenceSession | None, feed: Feed) -> _Measured:
        """Run one sample and measure each observed tensor, once for each time it was computed.

        Return the statistics that are to be added in the order of samples.
        """
        model = self._model
        results = run_sample(session, model.index, model.outputs, feed)
        measured: _Measured = []
        while results:  # a tensor whose values were copied is not held twice
            source, iterations = model.locate_output(*results.pop())
            statistics = self._statistics.get(source)
            if statistics is None:
                continue
            for values in iterations:
                sample = statistics.measure(values)
                if sample is not None:
                    measured.append((statistics, sample))
        return measured

    def by_tensor(self) -> tuple[TensorRange, ...]:
        """Return the ranges of the tensors over all samples so far; `is_settled` must be true."""
        ranges: list[TensorRange] = []
        for tensor in self._observed:
            ranges.append(self._statistics[tensor.source].to_range(tensor.read))
        return tuple(ranges)


@dataclass(frozen=True)
class ObservedModel:
    """The model that is run, and how its outputs are the observed tensors."""

    index: GraphIndex
    #: Its further outputs.
    outputs: list[str]
    #: The outputs that come from bodies.
    exposed: dict[str, ExposedTensor]
    #: Tensors that require no run.
    constants: tuple[TensorKey, ...]

    @property
    def flat_tensors(self) -> set[TensorKey]:
        """The tensors that come as vectors, so that their channels are not known."""
        return {(item.graph, item.tensor) for item in self.exposed.values() if item.is_flat}

    def locate_output(self, name: str, values: Array) -> tuple[TensorKey, Iterable[Array]]:
        """Return the tensor of an output, and its values of each time that it was computed."""
        exposed = self.exposed.get(name)
        iterations = (values,) if exposed is None else exposed.split_iterations(values)
        return self.locate_tensor(name), iterations

    def locate_tensor(self, output: str) -> TensorKey:
        """Return the tensor of an output."""
        exposed = self.exposed.get(output)
        return ("", output) if exposed is None else (exposed.graph, exposed.tensor)


def build_observed_model(index: GraphIndex, tensors: set[TensorKey]) -> ObservedModel:
    """Return the model that is run to observe some tensors."""
    constants: list[TensorKey] = []
    outputs: list[str] = []
    body_tensors: list[TensorKey] = []
    for path, tensor in sorted(tensors):
        if index.scopes[path].is_constant(tensor):
            constants.append((path, tensor))
        elif path:
            body_tensors.append((path, tensor))
        elif tensor not in index.inputs:
            outputs.append(tensor)
    if not body_tensors:
        return ObservedModel(index, outputs, {}, tuple(constants))
    source, exposed = expose_body_tensors(index, body_tensors)
    return ObservedModel(GraphIndex(source), [*outputs, *exposed], exposed, tuple(constants))


def open_observing_session(
    index: GraphIndex, outputs: list[str], settings: RunSettings
) -> ort.InferenceSession | None:
    """Return a session with some tensors as further outputs, for several samples at once.

    It runs only the part that the tensors need where ONNX Runtime cannot run the whole model.
    Returns None without tensors.
    """
    if not outputs:
        return None
    libraries = settings.libraries
    is_whole = not find_unknown_operators(index.source.model, libraries)
    try:
        if is_whole:
            options = _thread_options(settings)
            return open_session(index, outputs, options, settings.providers, libraries)
    except ModelError:
        # ONNX Runtime may lack an operator for some types, too
        with contextlib.suppress(ModelError):
            return _open_partial_session(index, outputs, settings)
        raise
    return _open_partial_session(index, outputs, settings)


def _open_partial_session(
    index: GraphIndex, outputs: list[str], settings: RunSettings
) -> ort.InferenceSession:
    options = _thread_options(settings)
    return open_partial_session(index, outputs, options, settings.providers, settings.libraries)


def _thread_options(settings: RunSettings) -> ort.SessionOptions:
    """Return session options with the cores of one of the samples that run at the same time.

    ONNX Runtime would plan the memory of a second run from the first one, and take it beside the
    memory that it has: nearly all tensors are results here, and leave no memory to reuse.
    """
    parallel = min(settings.cores, settings.parallel_samples)
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(settings.cores // parallel, 1)
    options.enable_mem_pattern = False
    return options


def _find_source(scope: GraphIndex, tensor: str) -> TensorKey:
    """Return the graph that defines the tensor that is read, or that it is an alias of."""
    origin = find_origin(scope, tensor)
    return scope.defining_scope(origin).path, origin


def _find_summed_axes(index: GraphIndex, plan: Plan) -> dict[TensorKey, int]:
    """Return the axis of each tensor that its products with constant weights sum over.

    Tensors whose readers sum over different axes are left out.
    """
    axes: dict[TensorKey, set[int]] = {}
    for placement in plan.placements:
        if placement.quantizer.axis is not None and placement.edge.slot == 1:
            _add_summed_axis(index, placement, axes)
    return {source: min(summed) for source, summed in axes.items() if len(summed) == 1}


def _add_summed_axis(
    index: GraphIndex, placement: Placement, axes: dict[TensorKey, set[int]]
) -> None:
    """Add the axis of the tensor that a quantized weight is multiplied with."""
    scope = index.scope(placement.edge)
    node = index.node(placement.edge)
    axis = input_channel_axis(scope, node)
    if axis is not None:
        source = _find_source(scope, node.inputs[0])
        axes.setdefault(source, set()).add(axis)
