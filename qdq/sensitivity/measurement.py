"""Measured noise of a model with any part of its pairs, over a few samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product

from qdq.arrays import Array, Feed
from qdq.planning.decisions import Placement
from qdq.sensitivity.output_noise import OutputNoise
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
        tensors: Sequence[ScoredTensor],
        samples: Sequence[Feed],
        cores: int,
    ) -> None:
        """Run the float model over the samples, `cores` of them at a time.

        `tensors` are the ones that the session returns, in its order.
        """
        self._session = session
        self._tensors = tensors
        self._samples = list(samples)
        self._cores = max(1, cores)
        self._noise: dict[_Job, OutputNoise] = {}
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
        selected = range(min(samples or self.count, self.count))
        pair_sets = [frozenset(part) for part in parts]
        self._run_missing(product(pair_sets, selected))
        means: list[float] = []
        for pairs in pair_sets:
            total = OutputNoise(len(self._tensors))
            for sample in selected:
                total.merge(self._noise[pairs, sample])
            means.append(total.mean())
        return means

    def _run_missing(self, jobs: Iterable[_Job]) -> None:
        """Run every pair of a part and a sample that was not run before."""
        missing = [job for job in dict.fromkeys(jobs) if job not in self._noise]
        self.runs += len(missing)
        with ThreadPoolExecutor(self._cores) as pool:
            noise = pool.map(lambda job: self._measure_sample(*job), missing)
            self._noise.update(zip(missing, noise, strict=True))

    def _run_float(self, feed: Feed) -> list[Array]:
        return self._score(self._session.run(feed, frozenset()))

    def _measure_sample(self, pairs: frozenset[Placement], sample: int) -> OutputNoise:
        noise = OutputNoise(len(self._tensors))
        outputs = self._score(self._session.run(self._samples[sample], pairs))
        noise.add(self._references[sample], outputs)
        return noise

    def _score(self, outputs: Sequence[Array]) -> list[Array]:
        scored = zip(self._tensors, outputs, strict=True)
        return [tensor.score(values) for tensor, values in scored]
