"""Is it accurate? The float and the quantized model side by side in ONNX Runtime, through Polygraphy's runners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import msgspec
import numpy as np
import onnxruntime as ort

from qdq.arrays import Array
from qdq.data.feeds import Feeds
from qdq.errors import DataError, ModelError, runtime_line
from qdq.graph.index import GraphIndex
from qdq.graph.operators import PASSES_SCORES, SCORING
from qdq.runtime.session import Progress, exact_options, open_session

_BATCH_AND_CLASSES = 2
_TINY = 1e-30


class OutputError(msgspec.Struct, frozen=True):
    """How far one output of the quantized model is from the float model's, over all samples."""

    name: str
    max_abs: float
    mean_abs: float
    #: Cosine of the angle between the two outputs, all samples as one vector.
    cosine: float
    #: 10 log10 of the float output's energy over the error's, in dB.
    snr_db: float
    #: Share of rows whose largest entry is the same; None where the output is no class scores.
    top1_agreement: float | None = None
    #: Samples for which the two have different shapes, as detections may; they are in none of the figures.
    shape_mismatches: int = 0


class Accuracy(msgspec.Struct, frozen=True):
    """The comparison of all outputs over some data."""

    data: str
    samples: int
    outputs: tuple[OutputError, ...]


def compare_outputs(
    float_index: GraphIndex,
    quantized_index: GraphIndex,
    feeds: Feeds,
    progress: Progress | None = None,
) -> Accuracy:
    """Return the error of every output, one sample held at a time.

    ONNX Runtime's own fusion of Q/DQ into integer kernels is switched off: what is measured is
    the arithmetic that the graph spells out, on any processor.
    """
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL + 1  # what it logs as critical it raises as well
    for name in quantized_index.inputs:
        if name not in float_index.inputs:
            raise ModelError(
                f"{quantized_index.source.name}: its input {name!r} is none of {float_index.source.name}; pass the float model it was made from"
            )
    sums = {name: _Sums(name, is_class_scores(float_index, name)) for name in float_index.outputs}
    samples = 0
    with (
        OnnxrtRunner(_session(float_index)) as ours,
        OnnxrtRunner(_session(quantized_index)) as theirs,
    ):
        for feed in feeds:
            expected, got = _infer(ours, feed, float_index), _infer(theirs, feed, quantized_index)
            for name, total in sums.items():
                if name not in got or got[name].ndim != expected[name].ndim:
                    raise ModelError(
                        f"{quantized_index.source.name}: output {name!r} is missing or has another rank than in {float_index.source.name}"
                    )
                total.add(expected[name], got[name])
            samples += 1
            if progress:
                progress(samples)
    return Accuracy(feeds.name, samples, tuple(total.result() for total in sums.values()))


def output_errors(
    index: GraphIndex, feeds: Iterable[dict[str, Array]], outputs: Iterable[Mapping[str, Array]]
) -> tuple[OutputError, ...]:
    """Return how far outputs that were computed elsewhere, one mapping a sample, are from the model's own in ONNX Runtime."""
    names = list(index.outputs)
    sums = [_Sums(name, is_class_scores(index, name)) for name in names]
    session = open_session(index, [])
    for feed, got in zip(feeds, outputs, strict=True):
        for total, expected in zip(sums, session.run(names, feed), strict=True):
            total.add(expected, np.asarray(got[total.name]))
    return tuple(total.result() for total in sums)


def is_class_scores(index: GraphIndex, output: str) -> bool:
    """Whether an output is [batch, classes], apart from trailing ones, and comes from a classifier's last operators."""
    shape = index.shape(output)
    if (
        shape is None
        or len([d for d in shape[1:] if d != 1]) != _BATCH_AND_CLASSES - 1
        or len(shape) < _BATCH_AND_CLASSES
        or shape[1] == 1
    ):
        return False
    node = index.producers.get(output)
    while node is not None and node.op in PASSES_SCORES:
        computed = [i for i in node.inputs if i and not index.is_constant(i)]
        node = index.producers.get(computed[0]) if computed else None
    return node is not None and node.op in SCORING


def _session(index: GraphIndex) -> Callable[[], ort.InferenceSession]:
    return lambda: open_session(index, [], exact_options())


def _infer(runner: object, feed: dict[str, Array], index: GraphIndex) -> dict[str, Array]:
    try:
        outputs: dict[str, Array] = runner.infer(feed)  # type: ignore[attr-defined] # Polygraphy is untyped
    except Exception as error:
        raise DataError(
            f"{index.source.name}: ONNX Runtime failed on a sample: {runtime_line(error).rstrip('.')}; check the shapes of the data"
        ) from error
    return outputs


class _Sums:
    """Running sums of one output's errors."""

    def __init__(self, name: str, scores: bool) -> None:
        self.name, self.scores = name, scores
        self.largest = self.absolute = self.error = self.dot = 0.0
        self.energies = [0.0, 0.0]
        self.count = self.rows = self.same = self.unlike = 0

    def add(self, expected: Array, got: Array) -> None:
        if expected.shape != got.shape:
            self.unlike += 1
            return
        a, b = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        difference = np.abs(a - b)
        self.largest = max(self.largest, float(difference.max(initial=0.0)))
        self.absolute += float(difference.sum())
        self.error += float(difference @ difference)
        self.dot += float(a @ b)
        self.energies = [self.energies[0] + float(a @ a), self.energies[1] + float(b @ b)]
        self.count += a.size
        if self.scores and a.size:
            self.rows += len(expected)
            self.same += int(
                (
                    a.reshape(len(expected), -1).argmax(1) == b.reshape(len(expected), -1).argmax(1)
                ).sum()
            )

    def result(self) -> OutputError:
        """Return the figures: NaN where no sample could be compared, an infinite ratio where nothing differs."""
        if not self.count:
            return OutputError(self.name, math.nan, math.nan, math.nan, math.nan, None, self.unlike)
        ours, theirs = self.energies
        same = self.error == 0.0
        return OutputError(
            self.name,
            max_abs=self.largest,
            mean_abs=self.absolute / self.count,
            cosine=1.0 if same else self.dot / max(math.sqrt(ours * theirs), _TINY),
            snr_db=math.inf if same else 10 * math.log10(max(ours / self.error, _TINY)),
            top1_agreement=self.same / self.rows if self.rows else None,
            shape_mismatches=self.unlike,
        )
