"""Collecting ranges with several processes or machines: Dask distributed runs parts of the samples.

The ranges of the parts merge exactly. Dask runs the tasks of a lost worker on another one (Dask
distributed documentation, Resilience).
"""

from __future__ import annotations

import logging
import math
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import onnx

from qdq.cores import count_cores
from qdq.data.feeds import DataLike, Feeds, with_absolute_paths
from qdq.errors import DataError, ModelError, QdqError, UsageError, first_line
from qdq.files.temporary import work_folder
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source, canonical_bytes
from qdq.interruption import DelayedEnd
from qdq.observers.checkpoint import CheckpointWriter
from qdq.observers.collection import CollectionJob, Observing, collect_locally, open_checkpoint
from qdq.optional_packages import require_package
from qdq.planning.decisions import Plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.ranges.tensor_ranges import Part, Ranges, merge
from qdq.runtime.session import Progress
from qdq.stage_log import timed_stage

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster


#: The most parts for each worker: with several, one that is lost or slow costs little.
_PARTS_PER_WORKER = 4

#: The least samples of a part of a process on this machine, where there are enough for all: each
#: part starts a session.
_LOCAL_SAMPLES = 32

#: The cores that one process keeps busy: it runs samples beside each other, and counts meanwhile.
_CORES_OF_A_PROCESS = 2

#: The seconds of work in one process below which processes, which start in about five, are slower.
_START_SECONDS = 10.0

#: Option for the warnings of new processes. The tracker of semaphores of `multiprocessing`, one
#: of them, outlives a process that was killed, and would warn that it removes its semaphores.
_QUIET_TRACKER = "ignore:resource_tracker:UserWarning"

#: Seconds that a scheduler may take to answer.
_TIMEOUT = 20


class _WorkerTask(msgspec.Struct, frozen=True):
    """The input of a worker that observes parts of the samples."""

    #: The model's file, or the model itself where it has none.
    model: Path | bytes
    plan: Plan
    data: DataLike | None
    full: bool
    batch: int | None
    left_out: frozenset[str]
    observing: Observing


@timed_stage("observing samples")
def collect_ranges(
    job: CollectionJob, observing: Observing, progress: Progress | None = None
) -> Ranges:
    """Return the ranges of every activation that a plan quantizes.

    They are observed in this process, or in others where `observing` asks for it. Raises the errors
    of `collect_locally` and `collect_distributed`.
    """
    if observing.is_distributed:
        return collect_distributed(job, observing, progress)
    return collect_locally(job, observing, progress)


def collect_distributed(
    job: CollectionJob, observing: Observing, progress: Progress | None = None
) -> Ranges:
    """Return the same ranges as `collect_locally`, computed by several processes.

    These are at most `observing.workers` processes on this machine, which start where they finish
    earlier than this one, or the workers of `observing.scheduler`. Raises
    UsageError where Dask is not installed or the scheduler cannot be reached, DataError for samples
    that can be read only once, and the errors of `collect_locally`.
    """
    feeds = job.feeds()
    if feeds.once:
        raise DataError(
            f"{feeds.name}: the samples can be read only once, but every worker reads its own "
            "samples. Pass a list, a path or a script."
        )
    writer = open_checkpoint(job, observing, feeds)
    total = _Total(observing.part, writer, progress)
    if observing.workers:
        _collect_on_this_machine(job, observing, feeds, total)
    else:
        with _open_client(observing) as (client, workers):
            parts = total.split(feeds, workers, least=1)
            task = _make_task(job, observing, workers)
            for ranges in _iterate_results(client, task, parts):
                total.add(ranges)
    return total.result(feeds.name)


def _collect_on_this_machine(
    job: CollectionJob, observing: Observing, feeds: Feeds, total: _Total
) -> None:
    """Observe the parts here until processes finish the rest earlier; then in processes."""
    most = observing.workers or 1
    if _count_processes(most, math.inf) > 1:
        require_package("distributed")
    parts = total.split(feeds, most, _LOCAL_SAMPLES)
    while parts:
        start = perf_counter()
        total.add(_observe_here(job, observing, parts.pop(0), total))
        seconds_left = (perf_counter() - start) * len(parts)
        workers = _count_processes(most, seconds_left)
        if parts and workers > 1:
            observing = msgspec.structs.replace(observing, workers=workers)
            with _open_client(observing) as (client, _):
                task = _make_task(job, observing, workers)
                for ranges in _iterate_results(client, task, parts):
                    total.add(ranges)
            return


def _count_processes(most: int, seconds_left: float) -> int:
    """Return how many processes finish a rest earlier than this one, which takes some seconds."""
    if seconds_left < _START_SECONDS:
        return 1
    return min(most, count_cores() // _CORES_OF_A_PROCESS)


def _observe_here(job: CollectionJob, observing: Observing, part: Part, total: _Total) -> Ranges:
    local = msgspec.structs.replace(
        observing, part=part, workers=None, checkpoint=None, resume=False
    )
    return collect_locally(job, local, total.make_part_progress())


class _Total:
    """The ranges of the parts that are finished, with their checkpoint and progress."""

    def __init__(self, part: Part, writer: CheckpointWriter, progress: Progress | None) -> None:
        self._part = part
        self._writer = writer
        self._progress = progress
        self._ranges = writer.passes[0] if writer.passes else None

    def split(self, feeds: Feeds, workers: int, least: int) -> list[Part]:
        """Return the parts that remain to be observed."""
        count = feeds.left(self._part.number - 1, self._part.of)
        return _split_part(self._part, self._ranges, count, workers, least)

    def make_part_progress(self) -> Progress | None:
        """Return the progress of a part that is observed here."""
        report, samples = self._progress, self._ranges.samples if self._ranges else 0
        return (lambda done: report(samples + done)) if report else None

    def add(self, ranges: Ranges) -> None:
        """Add the ranges of a part."""
        self._ranges = merge((self._ranges, ranges)) if self._ranges else ranges
        if self._progress:
            self._progress(self._ranges.samples)
        if self._writer.is_due:
            self._writer.write(self._ranges)

    def result(self, data: str) -> Ranges:
        """Return the ranges of all parts, as of one."""
        assert self._ranges is not None  # there is at least one part
        part = self._part
        return msgspec.structs.replace(self._ranges, data=data, of=part.of, parts=(part.number,))


def _iterate_results(client: Client, task: _WorkerTask, parts: list[Part]) -> Iterator[Ranges]:
    """Yield the ranges of each part when a worker has observed them."""
    from distributed import as_completed

    with warnings.catch_warnings():
        # Dask warns of a large model in memory; scattered, it would be lost with a worker
        warnings.simplefilter("ignore", UserWarning)
        futures = [client.submit(_observe_part, task, part, pure=False) for part in parts]
    for future in as_completed(futures):
        yield _get_result(future)
        future.release()


def _split_part(
    part: Part, checkpoint: Ranges | None, count: int | None, workers: int, least: int
) -> list[Part]:
    """Return the parts that a part is split into, without those that a checkpoint holds.

    A part has `least` samples where there are enough for all workers.
    """
    if checkpoint:
        split = checkpoint.of // part.of
    elif count is None:  # each part reads all samples to reach its own
        split = workers
    else:
        enough = max(count // least, workers)
        split = min(workers * _PARTS_PER_WORKER, enough, max(count, 1))
    finished = checkpoint.parts if checkpoint else ()
    parts: list[Part] = []
    for i in range(split):
        smaller = Part(part.number + part.of * i, part.of * split)
        if smaller.number not in finished:
            parts.append(smaller)
    return parts


def _make_task(job: CollectionJob, observing: Observing, workers: int) -> _WorkerTask:
    """Return the task of a worker; workers on this machine share its memory limit and its cores."""
    source = job.index.source
    max_memory = observing.max_memory
    cores = None
    if observing.workers:
        cores = max(count_cores() // workers, 1)
        if max_memory:
            max_memory //= workers
    return _WorkerTask(
        model=source.path.resolve() if source.path else canonical_bytes(source.model),
        plan=job.plan,
        data=with_absolute_paths(job.data),
        full=job.full,
        batch=job.batch,
        left_out=job.left_out,
        observing=Observing(
            device=observing.device,
            max_memory=max_memory,
            cores=cores,
            ort_libraries=tuple(path.resolve() for path in observing.ort_libraries),
        ),
    )


def _observe_part(task: _WorkerTask, part: Part) -> Ranges:
    """Return the ranges of a part; runs in a worker."""
    index = _load_index(task.model, task.plan)
    job = CollectionJob(index, task.plan, task.data, task.full, task.batch, task.left_out)
    observing = msgspec.structs.replace(task.observing, part=part)
    return collect_locally(job, observing)


@lru_cache(maxsize=1)
def _load_index(model: Path | bytes, plan: Plan) -> GraphIndex:
    """Return the index of a model, which a worker keeps from part to part."""
    if isinstance(model, bytes):
        return GraphIndex(Source(None, onnx.load_model_from_string(model), plan.digest))
    source = load(model)
    if source.digest != plan.digest:
        raise ModelError(
            f"{model}: a worker has another file there, with digest {source.digest[:12]} instead "
            f"of {plan.digest[:12]}. Copy the same file to every machine."
        )
    return GraphIndex(source_at_plan_opset(source, plan))


def _get_result(future: Future) -> Ranges:
    """Return the ranges of a worker; raises UsageError where Dask could not run it."""
    try:
        ranges: Ranges = future.result()
        return ranges
    except QdqError:
        raise
    except Exception as error:
        raise UsageError(
            f"Dask could not run a part of the samples: {_describe_error(error)}. "
            "Check the workers' logs."
        ) from error


@contextmanager
def _open_client(observing: Observing) -> Iterator[tuple[Client, int]]:
    """Yield a client of a cluster, and the number of its workers.

    The cluster is that at `observing.scheduler`, or one that is started on this machine.
    """
    require_package("distributed")
    from distributed import Client

    if observing.scheduler is None:
        with (
            work_folder() as folder,
            _start_cluster(observing.workers, folder) as cluster,
            Client(cluster) as client,
        ):
            yield client, observing.workers or 1
    else:
        with _connect(observing.scheduler) as client:
            yield client, len(client.nthreads())


def _start_cluster(workers: int | None, folder: Path) -> LocalCluster:
    """Return a cluster of processes on this machine that keep their files in a folder."""
    import dask
    from distributed import LocalCluster

    try:
        with (
            dask.config.set({"temporary-directory": str(folder)}),
            DelayedEnd(),
            _hidden_from_ctrl_c(),
        ):
            return LocalCluster(
                workers,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            )
    except Exception as error:  # Dask documents none
        raise UsageError(
            f"Dask could not start {workers} processes: {_describe_error(error)}. "
            "Pass a smaller --workers."
        ) from error


@contextmanager
def _hidden_from_ctrl_c() -> Iterator[None]:
    """Start processes that write nothing when the user interrupts this one.

    A terminal sends SIGINT to all of them. They end when this process does.
    """
    if _QUIET_TRACKER not in sys.warnoptions:
        sys.warnoptions.append(_QUIET_TRACKER)
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # when it starts, it unblocks SIGINT
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def _connect(scheduler: str) -> Client:
    """Return a client of the cluster at an address, which has a worker."""
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_TIMEOUT)
        client.wait_for_workers(1, timeout=_TIMEOUT)
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"{scheduler}: no Dask scheduler with workers answers: {_get_first_line(error)}. "
            "Check the address."
        ) from error
    return client


def _describe_error(error: Exception) -> str:
    """Return the type of an error and the first line of its text."""
    return f"{type(error).__name__}: {_get_first_line(error)}"


def _get_first_line(error: Exception) -> str:
    return first_line(error).rstrip(".")
