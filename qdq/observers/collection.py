"""A plan and data in, ranges out: in one process, in parts, in several passes, and on from a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from qdq.data.feeds import DataLike, Feeds, data_files, open_feeds
from qdq.graph.index import GraphIndex
from qdq.observers.checkpoint import CheckpointWriter
from qdq.observers.memory_budget import split_into_passes
from qdq.observers.observer import Observer, RunSettings, list_observed_tensors
from qdq.observers.tensor_statistics import ObservedTensor
from qdq.planning.decisions import Plan
from qdq.ranges.tensor_ranges import Part, Ranges, join_passes, join_runs, size_extent
from qdq.runtime.devices import execution_providers
from qdq.runtime.session import Progress

#: Seconds between checkpoints.
CHECKPOINT_INTERVAL = 30.0


class Observing(msgspec.Struct, frozen=True):
    """How the model is run over the samples."""

    #: Which of the samples are run: all, or every n-th.
    part: Part = Part()
    #: cpu, cuda, or cuda,cpu for CUDA where it is present.
    device: str = "cpu"
    #: Bytes that the process may take; more passes over the samples are made where it would take more.
    max_memory: int | None = None
    #: File that keeps how far the run has come, and whether to go on from there.
    checkpoint: Path | None = None
    resume: bool = False
    #: Seconds between checkpoints: what a kill loses at most.
    interval: float = CHECKPOINT_INTERVAL
    #: Processes that share the work, on this machine or on the Dask cluster at an address.
    workers: int | None = None
    scheduler: str | None = None
    #: Cores that are used; None for all.
    cores: int | None = None

    @property
    def spread(self) -> bool:
        """Whether other processes do the work."""
        return self.workers is not None or self.scheduler is not None


DEFAULT_OBSERVING = Observing()


@dataclass(frozen=True)
class CollectionJob:
    """What is observed."""

    index: GraphIndex
    plan: Plan
    data: DataLike | None
    #: Whether histograms and moments are wanted, besides the largest values.
    full: bool
    batch: int | None = None

    @cached_property
    def wanted(self) -> tuple[ObservedTensor, ...]:
        """The tensors that are observed."""
        return list_observed_tensors(self.index, self.plan, self.full)

    def feeds(self) -> Feeds:
        """Return the samples; raises DataError where there are none."""
        return open_feeds(self.index, self.data, self.batch)


def collect_locally(
    job: CollectionJob, observing: Observing = DEFAULT_OBSERVING, progress: Progress | None = None
) -> Ranges:
    """Return the ranges of every activation that a plan quantizes, over all samples or a part of them.

    Raises DataError where a sample gives NaN or Inf in a planned tensor, or a checkpoint is of another run, UsageError
    where a device is missing or the memory allowed is too small, and ModelError where ONNX Runtime refuses the model.
    """
    feeds, wanted = job.feeds(), job.wanted
    keeper = CheckpointWriter(
        observing.checkpoint, run_key(job, observing, feeds), observing.resume, observing.interval
    )
    current = keeper.passes[-1] if keeper.passes and not keeper.passes[-1].finished else None
    keeper.passes = tuple(ranges for ranges in keeper.passes if ranges.finished)
    begun = {
        tensor
        for ranges in (*keeper.passes, *([current] if current else ()))
        for tensor in ranges.tensors
    }
    running, groups = _groups(
        job, [one for one in wanted if one.read not in begun], feeds, observing
    )
    if current:
        groups = (tuple(one for one in wanted if one.read in current.tensors), *groups)
    done = len(keeper.passes)
    for number, group in enumerate(groups, done):
        one_pass = _Pass(
            job,
            feeds,
            running,
            observing.part,
            _shared_out(progress, number, done + len(groups), feeds.left(*_steps(observing.part))),
        )
        keeper.finish(one_pass.run(group, current if number == done else None, keeper))
    return join_passes(keeper.passes)


def _groups(
    job: CollectionJob, wanted: Sequence[ObservedTensor], feeds: Feeds, observing: Observing
) -> tuple[RunSettings, tuple[tuple[ObservedTensor, ...], ...]]:
    """Return how samples are run, and which tensors are observed in each pass."""
    running = RunSettings(
        execution_providers(observing.device), observing.cores or os.cpu_count() or 1
    )
    if not wanted and job.wanted:  # a checkpoint has them all
        return running, ()
    if observing.max_memory is None or not wanted:
        return running, (tuple(wanted),)
    running = msgspec.structs.replace(running, at_once=1)
    return running, split_into_passes(
        job.index, wanted, feeds.first(), running, observing.max_memory
    )


def _steps(part: Part) -> tuple[int, int]:
    return part.number - 1, part.of


def _shared_out(progress: Progress | None, number: int, passes: int, count: int | None) -> Progress:
    """Return a progress that counts samples as done only when all passes have seen them, where their number is known."""
    if progress is None:
        return lambda done: None
    if passes == 1 or count is None:
        return progress
    return lambda done: progress((number * count + done) // passes)


class _Pass:
    """One pass over the samples of a part."""

    def __init__(
        self, job: CollectionJob, feeds: Feeds, running: RunSettings, part: Part, progress: Progress
    ) -> None:
        self._job, self._feeds, self._running, self._part, self._progress = (
            job,
            feeds,
            running,
            part,
            progress,
        )

    def run(
        self, group: Sequence[ObservedTensor], before: Ranges | None, keeper: CheckpointWriter
    ) -> Ranges:
        """Return what some tensors hold, `before` being what earlier samples gave."""
        skipped = before.samples if before else 0
        start, step = _steps(self._part)
        observer = Observer(
            self._job.index, group, self._running, constants=start == 0 and before is None
        )
        if skipped:
            self._progress(skipped)
        done = 0
        for done in observer.run(self._feeds.named(start + skipped * step, step)):
            self._progress(skipped + done)
            if keeper.is_due:
                keeper.write(self._ranges(observer, done, before, finished=False))
        return self._ranges(observer, done, before, finished=True)

    def _ranges(
        self, observer: Observer, samples: int, before: Ranges | None, finished: bool
    ) -> Ranges:
        plan, part = self._job.plan, self._part
        sizes = size_extent(self._feeds.sizes)
        now = Ranges(
            plan.digest,
            self._feeds.name,
            samples,
            observer.by_tensor(),
            sizes,
            part.of,
            (part.number,),
            plan.scale_groups,
            finished,
        )
        return join_runs(before, now) if before else now


def run_key(job: CollectionJob, observing: Observing, feeds: Feeds) -> str:
    """Return what identifies all that ranges depend on, files of samples by their names, sizes and times of change; empty where no checkpoint is kept."""
    if observing.checkpoint is None:
        return ""
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in data_files(job.data)
    ]
    wanted = [(one.read, one.histogram, one.axis, one.grades) for one in job.wanted]
    known = (
        job.plan.digest,
        wanted,
        job.plan.scale_groups,
        feeds.name,
        files,
        job.batch,
        observing.part,
        observing.device,
        observing.spread,
    )
    return hashlib.sha256(msgspec.json.encode(known)).hexdigest()
