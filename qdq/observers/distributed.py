"""Observing on several processes or machines: every part of the samples is a task of Dask distributed, and their ranges merge exactly.

Dask runs the tasks of a worker that is lost on another (Dask distributed documentation, Resilience).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx

from qdq.data.feeds import DataLike, with_absolute_paths
from qdq.errors import DataError, ModelError, QdqError, UsageError, first_line
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import Source, canonical_bytes
from qdq.observers.checkpoint import CheckpointWriter
from qdq.observers.collection import CollectionJob, Observing, collect_locally, run_key
from qdq.planning.decisions import Plan
from qdq.planning.planner import source_at_plan_opset
from qdq.ranges.tensor_ranges import Part, Ranges, merge
from qdq.runtime.session import Progress

if TYPE_CHECKING:
    from distributed import Client, Future


#: Parts for each worker, so that one that is lost or slow costs little.
_PARTS_PER_WORKER = 4

#: Seconds that a scheduler may take to answer.
_PATIENCE = 20


class _Task(msgspec.Struct, frozen=True):
    """What a worker needs to observe parts of the samples."""

    #: The model's file, or the model itself where it came from none.
    model: Path | bytes
    plan: Plan
    data: DataLike | None
    full: bool
    batch: int | None
    observing: Observing


def collect_ranges(
    job: CollectionJob, observing: Observing, progress: Progress | None = None
) -> Ranges:
    """Return the ranges of every activation that a plan quantizes, observed in this process or, where asked for, in others.

    Raises what `collect_locally` and `collect_distributed` raise.
    """
    return (collect_distributed if observing.spread else collect_locally)(job, observing, progress)


def collect_distributed(
    job: CollectionJob, observing: Observing, progress: Progress | None = None
) -> Ranges:
    """Return the same ranges as `collect_locally`, computed by `observing.workers` processes or by the workers of `observing.scheduler`.

    Raises UsageError where Dask is not installed or the scheduler cannot be reached, DataError for
    samples that can be gone through only once, and what `collect_locally` raises.
    """
    feeds = job.feeds()
    if feeds.once:
        raise DataError(
            f"{feeds.name}: can be gone through only once, and every worker reads its own samples; pass a list, a path or a script"
        )
    keeper = CheckpointWriter(
        observing.checkpoint, run_key(job, observing, feeds), observing.resume, observing.interval
    )
    found = keeper.passes[0] if keeper.passes else None
    with _client(observing) as (client, workers):
        parts = _parts(
            observing.part, found, feeds.left(observing.part.number - 1, observing.part.of), workers
        )
        for ranges in _as_observed(client, _task(job, observing, workers), parts):
            found = merge((found, ranges)) if found else ranges
            if progress:
                progress(found.samples)
            if keeper.is_due:
                keeper.write(found)
    assert found is not None  # there is at least one part
    return msgspec.structs.replace(
        found, data=feeds.name, of=observing.part.of, parts=(observing.part.number,)
    )


def _as_observed(client: Client, task: _Task, parts: list[Part]) -> Iterator[Ranges]:
    """Yield the ranges of each part when a worker has observed them."""
    from distributed import as_completed

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # that a model in memory is large: scattered, it would be lost with a worker
        futures = [client.submit(_observe_part, task, part, pure=False) for part in parts]
    for future in as_completed(futures):
        yield _result(future)
        future.release()


def _parts(part: Part, found: Ranges | None, count: int | None, workers: int) -> list[Part]:
    """Return the parts that a part is dealt into, but for those that a checkpoint holds."""
    if found:
        deal = found.of // part.of
    elif count is None:  # to reach its own samples each part reads all
        deal = workers
    else:
        deal = min(workers * _PARTS_PER_WORKER, max(count, 1))
    dealt = [Part(part.number + part.of * i, part.of * deal) for i in range(deal)]
    return [one for one in dealt if not found or one.number not in found.parts]


def _task(job: CollectionJob, observing: Observing, workers: int) -> _Task:
    source = job.index.source
    model = source.path.resolve() if source.path else canonical_bytes(source.model)
    memory = (
        observing.max_memory // workers
        if observing.max_memory and observing.workers
        else observing.max_memory
    )
    cores = max((os.cpu_count() or 1) // workers, 1) if observing.workers else None
    return _Task(
        model,
        job.plan,
        with_absolute_paths(job.data),
        job.full,
        job.batch,
        Observing(device=observing.device, max_memory=memory, cores=cores),
    )


def _observe_part(task: _Task, part: Part) -> Ranges:
    """Run in a worker."""
    job = CollectionJob(_index(task.model, task.plan), task.plan, task.data, task.full, task.batch)
    return collect_locally(job, msgspec.structs.replace(task.observing, part=part))


@lru_cache(maxsize=1)
def _index(model: Path | bytes, plan: Plan) -> GraphIndex:
    """Return the index of a model, which a worker keeps from part to part."""
    if isinstance(model, bytes):
        return GraphIndex(Source(None, onnx.load_model_from_string(model), plan.digest))
    source = load(model)
    if source.digest != plan.digest:
        raise ModelError(
            f"{model}: a worker finds another file there: digest {source.digest[:12]}, not {plan.digest[:12]}; put the same file on every machine"
        )
    return GraphIndex(source_at_plan_opset(source, plan))


def _result(future: Future) -> Ranges:
    """Return what a worker observed; raises UsageError where Dask gave up on it."""
    try:
        ranges: Ranges = future.result()
        return ranges
    except QdqError:
        raise
    except Exception as error:
        raise UsageError(
            f"Dask could not run a part of the samples: {type(error).__name__}: {first_line(error)}; look into the workers' logs"
        ) from error


@contextmanager
def _client(observing: Observing) -> Iterator[tuple[Client, int]]:
    """Give a client of the cluster at an address, or of one made here, and how many workers it has."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError(
            f"--workers and --scheduler need Dask: {first_line(error)}; install it with pip install 'qdq[dask]'"
        ) from error
    if observing.scheduler is None:
        try:
            cluster = LocalCluster(
                observing.workers,
                threads_per_worker=1,
                memory_limit=0,
                dashboard_address=":0",
                silence_logs=logging.CRITICAL,
            )
        except Exception as error:  # Dask documents none
            raise UsageError(
                f"Dask could not start {observing.workers} processes: {type(error).__name__}: {first_line(error)}; try fewer"
            ) from error
        with cluster, Client(cluster) as client:
            yield client, observing.workers or 1
        return
    try:
        client = Client(observing.scheduler, timeout=_PATIENCE)
        client.wait_for_workers(1, timeout=_PATIENCE)
    except (OSError, TimeoutError, ValueError) as error:
        raise UsageError(
            f"{observing.scheduler}: no Dask scheduler with workers answers: {first_line(error)}; check the address"
        ) from error
    with client:
        yield client, len(client.nthreads())
