"""Measured noise of a model with any part of its pairs, over a few samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from itertools import product

from qdq.arrays import Array
from qdq.data.feeds import FeedSample
from qdq.metrics.metric import Metric, MetricItem
from qdq.planning.decisions import Placement
from qdq.runtime.session import Progress
from qdq.sensitivity.output_noise import NoiseReference, NoiseSums, mean_noise
from qdq.sensitivity.scored_tensors import ScoredTensor
from qdq.sensitivity.switchable_session import SwitchableSession

#: A part of a plan's pairs.
Pairs = Collection[Placement]

#: One run: the pairs that are switched on, and the number of the sample.
_Job = tuple[frozenset[Placement], int]


class NoiseMeasurement:
    """Runs of a switchable session over some samples, compared with the float model."""

    def __init__(
        self,
        session: SwitchableSession,
        scored: Sequence[ScoredTensor],
        outputs: Sequence[str],
        samples: Sequence[FeedSample],
        cores: int,
        progress: Progress | None = None,
    ) -> None:
        """Run the float model over the samples, `cores` of them at a time.

        The session returns the `scored` tensors and then the outputs.
        """
        self._session = session
        self._scored = tuple(scored)
        self._outputs = tuple(map(ScoredTensor, outputs))
        #: The tensors that are compared, each once.
        self._tensors = tuple(dict.fromkeys((*self._scored, *self._outputs)))
        self._samples = list(samples)
        self._cores = max(1, cores)
        self._progress = progress
        self._noise: dict[_Job, dict[ScoredTensor, NoiseSums]] = {}
        #: The number of runs so far.
        self.runs = len(self._samples)
        with ThreadPoolExecutor(self._cores) as pool:
            self._references = list(pool.map(self._run_float, range(self.count)))
        self._compared = [self._make_references(values) for values in self._references]

    def with_session(self, session: SwitchableSession) -> NoiseMeasurement:
        """Return a measurement of other pairs with the same samples and float runs."""
        measurement = copy(self)
        measurement._session = session
        measurement._noise = {}
        return measurement

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
            runs = pool.map(partial(self._run, part), range(self.count))
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
        tensors = self._outputs if at_outputs else self._scored
        means: list[float] = []
        for pairs in pair_sets:
            runs = [self._noise[pairs, sample] for sample in selected]
            means.append(mean_noise(_sum_runs(runs, tensor) for tensor in tensors))
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

    def _run_float(self, sample: int) -> list[Array]:
        return self._run(frozenset(), sample)

    def _run(self, pairs: frozenset[Placement], sample: int) -> list[Array]:
        return self._session.run(self._samples[sample].feed, pairs, sample)

    def _make_references(self, values: Sequence[Array]) -> dict[ScoredTensor, NoiseReference]:
        named = self._name_values(values)
        references: dict[ScoredTensor, NoiseReference] = {}
        for tensor in self._tensors:
            references[tensor] = NoiseReference(tensor.score(named[tensor.name]))
        return references

    def _measure_sample(self, job: _Job) -> dict[ScoredTensor, NoiseSums]:
        pairs, sample = job
        named = self._name_values(self._run(pairs, sample))
        noise: dict[ScoredTensor, NoiseSums] = {}
        for tensor, reference in self._compared[sample].items():
            noise[tensor] = reference.measure(tensor.score(named[tensor.name]))
        return noise

    def _name_values(self, values: Sequence[Array]) -> dict[str, Array]:
        """Return the tensors of a run by their names."""
        names = [tensor.name for tensor in (*self._scored, *self._outputs)]
        return dict(zip(names, values, strict=True))


def _sum_runs(runs: Iterable[Mapping[ScoredTensor, NoiseSums]], tensor: ScoredTensor) -> NoiseSums:
    """Return the energies of a tensor over several samples."""
    total = NoiseSums()
    for run in runs:
        total = total.add(run[tensor])
    return total


def drop_of(score: float, float_score: float) -> float:
    """Return by how much a score is below that of the float model; infinite for NaN."""
    drop = float_score - score
    return math.inf if math.isnan(drop) else drop
