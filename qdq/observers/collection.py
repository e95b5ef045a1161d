"""Collecting ranges for a plan: in one process, in parts, in several passes, from a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from pathlib import Path
from typing import TypeAlias

import msgspec

from qdq.arguments import require_type, to_count, to_path
from qdq.cores import count_cores
from qdq.data.feeds import DataLike, Feeds, data_files, open_feeds
from qdq.graph.index import GraphIndex
from qdq.observers.checkpoint import CheckpointWriter
from qdq.observers.memory_budget import split_into_passes
from qdq.observers.observer import Observer, RunSettings, list_observed_tensors
from qdq.observers.tensor_statistics import ObservedTensor
from qdq.observers.uncomputable_tensors import (
    find_uncomputable_tensors,
    require_computable,
)
from qdq.planning.decisions import Plan
from qdq.printable import encodable_name
from qdq.ranges.tensor_ranges import Part, Ranges, join_passes, join_runs, size_extent
from qdq.runtime.devices import execution_providers
from qdq.runtime.session import Progress

#: The most cores of a run: ONNX Runtime takes no larger number of threads.
_MOST_CORES = 1 << 12

#: Seconds between checkpoints.
CHECKPOINT_INTERVAL = 30.0

#: The tensors that are observed in one pass.
_Group: TypeAlias = tuple[ObservedTensor, ...]


class Observing(msgspec.Struct, frozen=True):
    """How the model is run over the samples."""

    #: Which of the samples are run: all, or every n-th.
    part: Part = Part()
    #: cpu, cuda, or cuda,cpu for CUDA where it is present.
    device: str = "cpu"
    #: The bytes that the process may take; a lower limit takes more passes over the samples.
    max_memory: int | None = None
    #: The file that keeps the progress of the run, and whether to continue from there.
    checkpoint: Path | None = None
    resume: bool = False
    #: Seconds between checkpoints: an interrupted run loses at most this much.
    interval: float = CHECKPOINT_INTERVAL
    #: Processes that share the work, on this machine or on the Dask cluster at an address.
    workers: int | None = None
    scheduler: str | None = None
    #: The number of cores that are used; None for all.
    cores: int | None = None
    #: Libraries of custom operators for ONNX Runtime.
    ort_libraries: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        require_type(self.part, Part, "Observing.part", "qdq.Part(number, of)")
        require_type(self.device, str, "Observing.device", "'cpu' or 'cuda'")
        for name in ("max_memory", "workers", "cores"):
            count = getattr(self, name)
            if count is not None:
                to_count(count, 1, f"Observing.{name}")
        require_type(self.resume, bool, "Observing.resume", "True or False")
        require_type(self.interval, Real, "Observing.interval", "seconds")
        require_type(self.scheduler, (str, type(None)), "Observing.scheduler", "an address")
        if self.checkpoint is not None:
            checkpoint = to_path(self.checkpoint, "Observing.checkpoint")
            msgspec.structs.force_setattr(self, "checkpoint", checkpoint)

    @property
    def is_distributed(self) -> bool:
        """Whether other processes do the work."""
        return self.workers is not None or self.scheduler is not None


DEFAULT_OBSERVING = Observing()


@dataclass(frozen=True)
class CollectionJob:
    """A model, a plan and data to collect ranges from."""

    index: GraphIndex
    plan: Plan
    data: DataLike | None
    #: Whether histograms and moments are required as well as the largest values.
    full: bool
    batch: int | None = None
    #: Planned tensors that are not observed: their ranges are known, and cannot be computed.
    left_out: frozenset[str] = frozenset()

    @cached_property
    def observed_tensors(self) -> tuple[ObservedTensor, ...]:
        """The tensors that are observed."""
        planned = list_observed_tensors(self.index, self.plan, self.full)
        return tuple(tensor for tensor in planned if tensor.read not in self.left_out)

    def leave_out_uncomputable(self, known: Set[str], libraries: tuple[Path, ...]) -> CollectionJob:
        """Return the job without tensors that cannot be computed, and whose ranges are `known`."""
        uncomputable = find_uncomputable_tensors(self.index, self.observed_tensors, libraries)
        left_out = frozenset(uncomputable) & known
        return replace(self, left_out=left_out) if left_out else self

    def feeds(self) -> Feeds:
        """Return the samples; raises DataError where there are none."""
        return open_feeds(self.index, self.data, self.batch)


def collect_locally(
    job: CollectionJob, observing: Observing = DEFAULT_OBSERVING, progress: Progress | None = None
) -> Ranges:
    """Return the ranges of every activation that a plan quantizes, over all samples or a part.

    Raises DataError where a sample gives NaN or Inf in a planned tensor, or a checkpoint is of
    another run, UsageError where a device is missing or the memory limit is too low, and ModelError
    where ONNX Runtime refuses the model.
    """
    feeds = job.feeds()
    writer = open_checkpoint(job, observing, feeds)
    current = _pop_unfinished(writer)
    begun = [*writer.passes]
    if current is not None:
        begun.append(current)
    settings, groups = _plan_passes(job, begun, feeds, observing)
    if current is not None:
        names = set(current.tensors)
        resumed = [tensor for tensor in job.observed_tensors if tensor.read in names]
        groups = (tuple(resumed), *groups)
    count = feeds.left(*_first_and_step(observing.part))
    finished = len(writer.passes)
    passes = finished + len(groups)
    for number, group in enumerate(groups, finished):
        pass_progress = _share_progress(progress, number, passes, count)
        collection = _Pass(job, feeds, settings, observing.part, pass_progress)
        before = current if number == finished else None
        writer.finish(collection.run(group, before, writer))
    return join_passes(writer.passes)


def open_checkpoint(job: CollectionJob, observing: Observing, feeds: Feeds) -> CheckpointWriter:
    """Return the writer of a run's checkpoints, with the passes of the run that it resumes."""
    run = ""
    if observing.checkpoint is not None:
        run = identify_run(job, observing, feeds)
    return CheckpointWriter(observing.checkpoint, run, observing.resume, observing.interval)


def identify_run(job: CollectionJob, observing: Observing, feeds: Feeds) -> str:
    """Return a digest of everything that ranges depend on.

    Files of samples count by their names, sizes and modification times.
    """
    files: list[tuple[str, int, int]] = []
    for file in data_files(job.data):
        status = file.stat()
        files.append((encodable_name(file.name), status.st_size, status.st_mtime_ns))
    observed: list[tuple[object, ...]] = []
    for tensor in job.observed_tensors:
        observed.append((tensor.read, tensor.histogram, tensor.axis, tensor.grades))
    inputs = (
        job.plan.digest,
        observed,
        job.plan.scale_groups,
        feeds.name,
        files,
        job.batch,
        observing.part,
        observing.device,
        observing.is_distributed,
    )
    return hashlib.sha256(msgspec.json.encode(inputs)).hexdigest()


def _pop_unfinished(writer: CheckpointWriter) -> Ranges | None:
    """Take the pass that was interrupted, if any, from those of a checkpoint."""
    if not writer.passes or writer.passes[-1].finished:
        return None
    current = writer.passes[-1]
    writer.passes = writer.passes[:-1]
    return current


def _plan_passes(
    job: CollectionJob, begun: Sequence[Ranges], feeds: Feeds, observing: Observing
) -> tuple[RunSettings, tuple[_Group, ...]]:
    """Return how samples are run, and the tensors of each pass that is not begun yet."""
    settings = RunSettings(
        providers=execution_providers(observing.device),
        cores=min(observing.cores or count_cores(), _MOST_CORES),
        libraries=observing.ort_libraries,
    )
    require_computable(job.index, job.plan, job.observed_tensors, observing.ort_libraries)
    begun_tensors: set[str] = set()
    for ranges in begun:
        begun_tensors.update(ranges.tensors)
    remaining = [tensor for tensor in job.observed_tensors if tensor.read not in begun_tensors]
    if not remaining and job.observed_tensors:  # a checkpoint has all of them
        return settings, ()
    limit = observing.max_memory
    if limit is None or not remaining:
        return settings, (tuple(remaining),)
    settings = msgspec.structs.replace(settings, parallel_samples=1)
    return settings, split_into_passes(job.index, remaining, feeds.first(), settings, limit)


def _first_and_step(part: Part) -> tuple[int, int]:
    """Return the first sample of a part, counted from 0, and the distance to the next."""
    return part.number - 1, part.of


def _share_progress(
    progress: Progress | None, number: int, passes: int, count: int | None
) -> Progress:
    """Return the progress of one pass.

    Where the number of samples is known, samples count as done when all passes have run them.
    """
    if progress is None:
        return lambda done: None
    if passes == 1 or count is None:
        return progress
    return lambda done: progress((number * count + done) // passes)


class _Pass:
    """One pass over the samples of a part."""

    def __init__(
        self,
        job: CollectionJob,
        feeds: Feeds,
        settings: RunSettings,
        part: Part,
        progress: Progress,
    ) -> None:
        self._job = job
        self._feeds = feeds
        self._settings = settings
        self._part = part
        self._progress = progress

    def run(self, group: _Group, before: Ranges | None, writer: CheckpointWriter) -> Ranges:
        """Return the ranges of some tensors; `before` holds those of earlier samples."""
        skipped = before.samples if before else 0
        start, step = _first_and_step(self._part)
        constants = start == 0 and before is None
        observer = Observer(self._job.index, group, self._settings, constants)
        if skipped:
            self._progress(skipped)
        done = 0
        samples = self._feeds.named(start + skipped * step, step)
        for done in observer.run(samples, must_settle=lambda: writer.is_due):
            self._progress(skipped + done)
            if writer.is_due and observer.is_settled:
                writer.write(self._collect(observer, done, before, finished=False))
        return self._collect(observer, done, before, finished=True)

    def _collect(
        self, observer: Observer, samples: int, before: Ranges | None, finished: bool
    ) -> Ranges:
        """Return the ranges so far, those of earlier samples included."""
        plan = self._job.plan
        ranges = Ranges(
            model=plan.digest,
            data=self._feeds.name,
            samples=samples,
            by_tensor=observer.by_tensor(),
            sizes=size_extent(self._feeds.sizes),
            of=self._part.of,
            parts=(self._part.number,),
            groups=plan.scale_groups,
            finished=finished,
        )
        return join_runs(before, ranges) if before else ranges
