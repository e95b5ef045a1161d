"""Measured noise of a model with any part of its pairs, over a few samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product

import msgspec

from qdq.arrays import Array
from qdq.data.feeds import FeedSample
from qdq.metrics.metric import Metric, MetricItem
from qdq.planning.decisions import Placement
from qdq.runtime.session import Progress
from qdq.sensitivity.output_noise import OutputNoise
from qdq.sensitivity.scored_tensors import ScoredTensor
from qdq.sensitivity.switchable_session import SwitchableSession

#: A part of a plan's pairs.
Pairs = Collection[Placement]

#: One run: the pairs that are switched on, and the number of the sample.
_Job = tuple[frozenset[Placement], int]


class _SampleNoise(msgspec.Struct, frozen=True):
    """The noise that one sample adds."""

    #: At the tensors that stand for the outputs, which a search goes by.
    scores: OutputNoise
    #: At the outputs.
    outputs: OutputNoise


class NoiseMeasurement:
    """Runs of a switchable session over some samples, compared with the float model."""

    def __init__(
        self,
        session: SwitchableSession,
        scored: Sequence[ScoredTensor],
        samples: Sequence[FeedSample],
        cores: int,
        progress: Progress | None = None,
    ) -> None:
        """Run the float model over the samples, `cores` of them at a time.

        The session returns the `scored` tensors and then the outputs.
        """
        self._session = session
        self._scored = scored
        self._samples = list(samples)
        self._cores = max(1, cores)
        self._progress = progress
        self._noise: dict[_Job, _SampleNoise] = {}
        #: The number of runs so far.
        self.runs = len(self._samples)
        with ThreadPoolExecutor(self._cores) as pool:
            self._references = list(pool.map(self._run_float, self._samples))

    @property
    def count(self) -> int:
        """The number of samples."""
        return len(self._samples)

    def measure(self, pairs: Pairs, samples: int | None = None) -> float:
        """Return the noise with some pairs, over the first samples or all."""
        return self.measure_all([pairs], samples)[0]

    def measure_all(self, parts: Iterable[Pairs], samples: int | None = None) -> list[float]:
        """Return the noise of each of several parts of the pairs, in the same order."""
        return self._measure_means(parts, samples, at_outputs=False)

    def measure_outputs(self, pairs: Pairs) -> float:
        """Return the noise with some pairs at the outputs, after a final Softmax too."""
        return self._measure_means([pairs], None, at_outputs=True)[0]

    def score(self, metric: Metric, pairs: Pairs, names: Sequence[str]) -> float:
        """Return the score of a metric with some pairs, over all samples.

        `names` are those of the outputs. Raises MetricError where the metric does not fit.
        """
        part = frozenset(pairs)
        with ThreadPoolExecutor(self._cores) as pool:
            runs = pool.map(lambda sample: self._session.run(sample.feed, part), self._samples)
            make_item = partial(self._make_item, names)
            return metric.score(map(make_item, runs, self._samples, self._references))

    def _make_item(
        self,
        names: Sequence[str],
        values: Sequence[Array],
        sample: FeedSample,
        reference: Sequence[Array],
    ) -> MetricItem:
        first = len(self._scored)
        outputs = dict(zip(names, values[first:], strict=True))
        float_outputs = dict(zip(names, reference[first:], strict=True))
        return MetricItem(outputs, sample.read_arrays(), float_outputs, sample.name)

    def _measure_means(
        self, parts: Iterable[Pairs], samples: int | None, at_outputs: bool
    ) -> list[float]:
        selected = range(min(samples or self.count, self.count))
        pair_sets = [frozenset(part) for part in parts]
        self._run_missing(product(pair_sets, selected))
        means: list[float] = []
        for pairs in pair_sets:
            runs = [self._noise[pairs, sample] for sample in selected]
            total = OutputNoise()
            for run in runs:
                total.merge(run.outputs if at_outputs else run.scores)
            means.append(total.mean())
        return means

    def _run_missing(self, jobs: Iterable[_Job]) -> None:
        """Run every part with every sample that it was not run with before."""
        missing = [job for job in dict.fromkeys(jobs) if job not in self._noise]
        with ThreadPoolExecutor(self._cores) as pool:
            for job, noise in zip(missing, pool.map(self._measure_sample, missing), strict=True):
                self._noise[job] = noise
                self.runs += 1
                if self._progress:
                    self._progress(self.runs)

    def _run_float(self, sample: FeedSample) -> list[Array]:
        return self._session.run(sample.feed, frozenset())

    def _measure_sample(self, job: _Job) -> _SampleNoise:
        pairs, sample = job
        expected = self._references[sample]
        actual = self._session.run(self._samples[sample].feed, pairs)
        first = len(self._scored)
        scores, outputs = OutputNoise(), OutputNoise()
        for tensor, reference, values in zip(self._scored, expected, actual, strict=False):
            scores.add(tensor.name, tensor.score(reference), tensor.score(values))
        for i in range(first, len(actual)):
            outputs.add(str(i), expected[i], actual[i])
        return _SampleNoise(scores, outputs)


def drop_of(score: float, float_score: float) -> float:
    """Return by how much a score is below that of the float model; infinite for NaN."""
    drop = float_score - score
    return math.inf if math.isnan(drop) else drop
