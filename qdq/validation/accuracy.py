"""Accuracy: the float and the quantized model side by side in ONNX Runtime.

Both run through Polygraphy's runners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from qdq.arrays import Array, Feed
from qdq.data.feeds import Feeds, FeedSample
from qdq.errors import ModelError
from qdq.graph.aliases import find_origin
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import PASSES_SCORES, SCORING
from qdq.metrics.metric import Metric, MetricComparison, MetricItem, MetricScores
from qdq.metrics.output_errors import ErrorSums, OutputError
from qdq.optional_packages import require_package
from qdq.runtime.session import (
    Progress,
    open_partial_session,
    open_session,
    run_outputs,
    sample_errors,
)
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators
from qdq.stage_log import timed_stage
from qdq.validation.compared_tensors import (
    ComparedTensors,
    MissingOutputs,
    select_compared_tensors,
)
from qdq.validation.float_overflows import OVERFLOW_SAMPLES, FloatOverflow, find_float_overflows

_BATCH_AND_CLASSES = 2


class Accuracy(msgspec.Struct, frozen=True):
    """The errors of all outputs over some data."""

    #: The name of the data.
    data: str
    #: Number of samples.
    samples: int
    outputs: tuple[OutputError, ...]
    #: The outputs that are not among them, and why; absent where all are.
    missing: MissingOutputs | msgspec.UnsetType = msgspec.UNSET
    #: The scores by the metric; absent without one.
    metric: MetricScores | msgspec.UnsetType = msgspec.UNSET
    #: The FP16 tensors that overflow in the first samples; absent where none does.
    overflows: tuple[FloatOverflow, ...] | msgspec.UnsetType = msgspec.UNSET


@timed_stage("comparing outputs")
def compare_outputs(
    float_index: GraphIndex,
    quantized_index: GraphIndex,
    feeds: Feeds,
    progress: Progress | None = None,
    libraries: Sequence[Path] = (),
    metric: Metric | None = None,
) -> Accuracy:
    """Return the error of every output, and the scores by a metric.

    One sample is in memory at a time, unless the metric keeps them. Where neither ONNX Runtime nor
    `libraries` have an operator, the last tensors before it count. ONNX Runtime's own fusion of
    Q/DQ into integer kernels is switched off, so that the arithmetic of the graph is measured on
    any processor. Raises ModelError where the two models have different inputs or outputs,
    DataError where ONNX Runtime fails on a sample, MetricError where the metric does.
    """
    runner = _import_runner()
    _require_same_inputs(float_index, quantized_index)
    compared = select_compared_tensors(float_index, quantized_index, libraries)
    comparison = _Comparison(float_index, quantized_index, compared, metric)
    first: list[Feed] = []
    with (
        runner(partial(compared.open_float_session, float_index)) as float_runner,
        runner(partial(compared.open_quantized_session, quantized_index)) as quantized_runner,
    ):
        for sample in feeds.samples():
            float_outputs = _infer(float_runner, sample.feed, float_index)
            quantized_outputs = _infer(quantized_runner, sample.feed, quantized_index)
            comparison.add(sample, float_outputs, quantized_outputs)
            if comparison.samples <= OVERFLOW_SAMPLES:
                first.append(sample.feed)
            if progress:
                progress(comparison.samples)
    overflows = find_float_overflows(quantized_index, float_index, first, libraries)
    result = comparison.result(feeds.name)
    return msgspec.structs.replace(result, overflows=overflows or msgspec.UNSET)


def _import_runner() -> Any:
    """Return Polygraphy's runner, which logs no errors: it raises them too."""
    require_package("polygraphy")
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1
    return OnnxrtRunner


class _Comparison:
    """The errors and scores of a quantized model while its samples run."""

    def __init__(
        self,
        float_index: GraphIndex,
        quantized_index: GraphIndex,
        compared: ComparedTensors,
        metric: Metric | None,
    ) -> None:
        self.samples = 0
        self._indices = float_index, quantized_index
        self._compared = compared
        self._sums = _error_sums(float_index, compared.names)
        self._scores = MetricComparison(metric) if metric is not None else None

    def add(
        self,
        sample: FeedSample,
        float_outputs: dict[str, Array],
        quantized_outputs: dict[str, Array],
    ) -> None:
        """Add the outputs of both models for a sample, each by its names."""
        outputs: dict[str, Array] = {}
        for name, quantized_name in self._compared.names.items():
            actual = quantized_outputs.get(quantized_name)
            if actual is None or actual.ndim != float_outputs[name].ndim:
                raise _output_mismatch(name, *self._indices)
            outputs[name] = actual
            self._sums[name].add(float_outputs[name], actual)
        if self._scores is not None:
            item = MetricItem(outputs, sample.read_arrays(), float_outputs, sample.name)
            self._scores.add(item)
        self.samples += 1

    def result(self, data: str) -> Accuracy:
        """Return the accuracy over all samples; `data` is their name."""
        errors = tuple(output_sums.result() for output_sums in self._sums.values())
        missing = self._compared.missing or msgspec.UNSET
        metric = self._scores.result() if self._scores is not None else msgspec.UNSET
        return Accuracy(data, self.samples, errors, missing, metric)


def _require_same_inputs(float_index: GraphIndex, quantized_index: GraphIndex) -> None:
    """Raise ModelError for an input of the quantized model that the float model lacks."""
    for name in quantized_index.inputs:
        if name not in float_index.inputs:
            raise ModelError(
                f"{quantized_index.source.name}: its input {name!r} is not an input of "
                f"{float_index.source.name}. Pass the float model it was made from."
            )


def _output_mismatch(name: str, float_index: GraphIndex, quantized_index: GraphIndex) -> ModelError:
    return ModelError(
        f"{quantized_index.source.name}: output {name!r} is missing or has another rank than in "
        f"{float_index.source.name}. Pass the float model it was made from."
    )


def output_errors(
    index: GraphIndex,
    feeds: Iterable[dict[str, Array]],
    outputs: Iterable[Mapping[str, Array]],
    libraries: Sequence[Path] = (),
) -> tuple[OutputError, ...]:
    """Return the errors of outputs that were computed elsewhere, one mapping per sample.

    The reference is the model in ONNX Runtime. Outputs that it cannot compute are left out.
    """
    unknown = find_unknown_operators(index.source.model, libraries)
    names = list(find_computed_outputs(index, unknown).outputs)
    if not names:
        return ()
    sums = _error_sums(index, names)
    if unknown:
        session = open_partial_session(index, names, libraries=libraries)
    else:
        session = open_session(index, [], libraries=libraries)
    for feed, actual_outputs in zip(feeds, outputs, strict=True):
        expected_outputs = run_outputs(session, index, names, feed)
        for name, expected in zip(names, expected_outputs, strict=True):
            actual = np.asarray(actual_outputs[name])
            sums[name].add(expected, actual)
    return tuple(output_sums.result() for output_sums in sums.values())


def is_class_scores(index: GraphIndex, output: str) -> bool:
    """Whether an output is [batch, classes] and comes from the last operators of a classifier.

    Further axes of size 1 are allowed.
    """
    shape = index.shape(output)
    if shape is None or len(shape) < _BATCH_AND_CLASSES or shape[1] == 1:
        return False
    class_axes = [size for size in shape[1:] if size != 1]
    if len(class_axes) != 1:
        return False
    view = CompilerView(index)
    node = view.producers.get(find_origin(index, output))
    while node is not None and node.op in PASSES_SCORES:
        node = _find_computed_producer(view, node)
    return node is not None and node.op in SCORING


def _find_computed_producer(index: GraphIndex, node: Node) -> Node | None:
    """Return the producer of a node's first input that is not constant."""
    for name in node.inputs:
        if name and not index.is_constant(name):
            return index.producers.get(name)
    return None


def _infer(runner: object, feed: dict[str, Array], index: GraphIndex) -> dict[str, Array]:
    with sample_errors(index):
        outputs: dict[str, Array] = runner.infer(feed)  # type: ignore[attr-defined] # untyped
    return outputs


def _error_sums(index: GraphIndex, names: Iterable[str]) -> dict[str, ErrorSums]:
    """Return empty sums for some tensors of the float model."""
    return {name: ErrorSums(name, is_class_scores(index, name)) for name in names}
