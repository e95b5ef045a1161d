"""Accuracy: the float and the quantized model side by side in ONNX Runtime.

Both run through Polygraphy's runners.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from qdq.arrays import Array, Floats
from qdq.data.feeds import Feeds
from qdq.errors import ModelError
from qdq.graph.aliases import find_origin
from qdq.graph.compiler_view import CompilerView
from qdq.graph.index import GraphIndex, Node
from qdq.graph.operators import PASSES_SCORES, SCORING
from qdq.runtime.session import (
    Progress,
    open_partial_session,
    open_session,
    run_outputs,
    sample_errors,
)
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators
from qdq.validation.compared_tensors import MissingOutputs, select_compared_tensors

_BATCH_AND_CLASSES = 2
_TINY = 1e-30


class OutputError(msgspec.Struct, frozen=True):
    """The error of one output of the quantized model over all samples."""

    #: Name of the output.
    name: str
    #: Largest absolute difference.
    max_abs: float
    #: Mean absolute difference.
    mean_abs: float
    #: Cosine of the angle between the two outputs, all samples as one vector.
    cosine: float
    #: 10 log10 of the float output's energy over the error's, in dB.
    snr_db: float
    #: Share of rows whose largest entry is the same; None where the output has no class scores.
    top1_agreement: float | None = None
    #: Samples for which the two outputs have different shapes, as detections may. They are not in
    #: the other figures.
    shape_mismatches: int = 0


class Accuracy(msgspec.Struct, frozen=True):
    """The errors of all outputs over some data."""

    #: The name of the data.
    data: str
    #: Number of samples.
    samples: int
    outputs: tuple[OutputError, ...]
    #: The outputs that are not among them, and why; absent where all are.
    missing: MissingOutputs | msgspec.UnsetType = msgspec.UNSET


def compare_outputs(
    float_index: GraphIndex,
    quantized_index: GraphIndex,
    feeds: Feeds,
    progress: Progress | None = None,
    libraries: Sequence[Path] = (),
) -> Accuracy:
    """Return the error of every output; one sample is in memory at a time.

    Where neither ONNX Runtime nor `libraries` have an operator, the last tensors before it count.
    ONNX Runtime's own fusion of Q/DQ into integer kernels is switched off, so that the arithmetic
    of the graph is measured on any processor. Raises ModelError where the two models have
    different inputs or outputs, DataError where ONNX Runtime fails on a sample.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.logger import G_LOGGER

    # Polygraphy raises the errors that it logs as critical.
    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1
    _require_same_inputs(float_index, quantized_index)
    compared = select_compared_tensors(float_index, quantized_index, libraries)
    sums = _error_sums(float_index, compared.names)
    samples = 0
    with (
        OnnxrtRunner(partial(compared.open_float_session, float_index)) as float_runner,
        OnnxrtRunner(partial(compared.open_quantized_session, quantized_index)) as quantized_runner,
    ):
        for feed in feeds:
            float_outputs = _infer(float_runner, feed, float_index)
            quantized_outputs = _infer(quantized_runner, feed, quantized_index)
            for name, output_sums in sums.items():
                actual = quantized_outputs.get(compared.names[name])
                if actual is None or actual.ndim != float_outputs[name].ndim:
                    raise _output_mismatch(name, float_index, quantized_index)
                output_sums.add(float_outputs[name], actual)
            samples += 1
            if progress:
                progress(samples)
    errors = tuple(output_sums.result() for output_sums in sums.values())
    return Accuracy(feeds.name, samples, errors, compared.missing or msgspec.UNSET)


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


class _ErrorSums:
    """Running sums of one output's errors."""

    def __init__(self, name: str, has_scores: bool) -> None:
        self.name = name
        self.has_scores = has_scores
        self.max_abs = 0.0
        self.sum_abs = 0.0
        self.error_energy = 0.0
        self.dot = 0.0
        self.expected_energy = 0.0
        self.actual_energy = 0.0
        self.count = 0
        self.rows = 0
        self.agreeing_rows = 0
        self.shape_mismatches = 0

    def add(self, expected: Array, actual: Array) -> None:
        """Add the output of one sample; one of another shape is only counted."""
        if expected.shape != actual.shape:
            self.shape_mismatches += 1
            return
        expected_values = expected.astype(np.float64).ravel()
        actual_values = actual.astype(np.float64).ravel()
        difference = np.abs(expected_values - actual_values)
        self.max_abs = max(self.max_abs, float(difference.max(initial=0.0)))
        self.sum_abs += float(difference.sum())
        self.error_energy += float(difference @ difference)
        self.dot += float(expected_values @ actual_values)
        self.expected_energy += float(expected_values @ expected_values)
        self.actual_energy += float(actual_values @ actual_values)
        self.count += expected_values.size
        if self.has_scores and expected_values.size:
            rows = len(expected)
            self.rows += rows
            self.agreeing_rows += _count_agreeing_rows(expected_values, actual_values, rows)

    def result(self) -> OutputError:
        """Return the figures.

        They are NaN where no sample could be compared; the ratio is infinite where nothing differs.
        """
        if not self.count:
            return OutputError(
                self.name,
                max_abs=math.nan,
                mean_abs=math.nan,
                cosine=math.nan,
                snr_db=math.nan,
                shape_mismatches=self.shape_mismatches,
            )
        cosine, snr_db = 1.0, math.inf
        if self.error_energy != 0.0:
            norms = math.sqrt(self.expected_energy * self.actual_energy)
            cosine = self.dot / max(norms, _TINY)
            snr_db = 10 * math.log10(max(self.expected_energy / self.error_energy, _TINY))
        return OutputError(
            self.name,
            max_abs=self.max_abs,
            mean_abs=self.sum_abs / self.count,
            cosine=cosine,
            snr_db=snr_db,
            top1_agreement=self.agreeing_rows / self.rows if self.rows else None,
            shape_mismatches=self.shape_mismatches,
        )


def _count_agreeing_rows(expected: Floats, actual: Floats, rows: int) -> int:
    """Return in how many rows two outputs have the same largest entry."""
    expected_scores = expected.reshape(rows, -1)
    actual_scores = actual.reshape(rows, -1)
    agrees = expected_scores.argmax(1) == actual_scores.argmax(1)
    return int(agrees.sum())


def _error_sums(index: GraphIndex, names: Iterable[str]) -> dict[str, _ErrorSums]:
    """Return empty sums for some tensors of the float model."""
    return {name: _ErrorSums(name, is_class_scores(index, name)) for name in names}
