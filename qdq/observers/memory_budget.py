"""Splitting the tensors that are observed over several passes, where all of them together would not fit in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import psutil
from onnx import helper

from qdq.arrays import Feed
from qdq.errors import UsageError
from qdq.graph.index import GraphIndex
from qdq.observers.observer import RunSettings, open_observing_session
from qdq.observers.tensor_statistics import ObservedTensor
from qdq.ranges.histogram import BINS
from qdq.runtime.session import run_sample

MEGABYTE = 1_000_000

#: Copies of one tensor that looking at it and counting it take: its channels by grade and in other orders.
_WORKING_COPIES = 4


def split_into_passes(
    index: GraphIndex,
    wanted: Sequence[ObservedTensor],
    feed: Feed,
    running: RunSettings,
    limit: int,
) -> tuple[tuple[ObservedTensor, ...], ...]:
    """Return groups of tensors, each small enough for a pass over the samples that takes at most `limit` bytes of memory.

    What the process and a run of the model take is measured with one sample, the tensors' sizes are
    inferred from it: larger samples take more. Raises UsageError where even one tensor at a time would not fit.
    """
    sizes = tensor_bytes(index, wanted, feed)
    largest = max(sizes.values(), default=0)
    histograms = sum(1 + len(set(one.grades.of_channel)) if one.grades else 1 for one in wanted)
    fixed = (
        _resident_after_run(index, feed, running)
        + _WORKING_COPIES * largest
        + histograms * BINS * np.dtype(np.int64).itemsize
    )
    copies = (
        running.held + 2 * running.at_once
    )  # ONNX Runtime computes in layouts of its own, and freed memory does not come back whole
    least = fixed + copies * largest
    if least > limit:
        needed = math.ceil(least / MEGABYTE)
        raise UsageError(
            f"{index.source.name}: a run of it, one tensor observed at a time, takes {needed} MB; allow at least as much with --max-memory"
        )
    groups: list[list[ObservedTensor]] = [[]]
    free = room = (limit - fixed) // copies
    for one in wanted:
        if sizes[one.read] > free:
            groups.append([])
            free = room
        groups[-1].append(one)
        free -= sizes[one.read]
    return tuple(map(tuple, groups))


def tensor_bytes(
    index: GraphIndex, wanted: Sequence[ObservedTensor], feed: Feed
) -> Mapping[str, int]:
    """Return the bytes of each tensor for one sample; those whose shape cannot be inferred count as the largest of the others."""
    at = GraphIndex(index.source, {name: values.shape for name, values in feed.items()})
    known: dict[str, int] = {}
    for one in wanted:
        path, tensor = one.source
        shape = at.scopes[path].shape(tensor)
        if shape is not None and None not in shape:
            item = helper.tensor_dtype_to_np_dtype(at.scopes[path].elem_type(tensor) or 1).itemsize
            known[one.read] = math.prod(d or 0 for d in shape) * item
    largest = max(known.values(), default=0)
    return {one.read: known.get(one.read, largest) for one in wanted}


def _resident_after_run(index: GraphIndex, feed: Feed, running: RunSettings) -> int:
    """Return the memory of this process while the model is run: ONNX Runtime's arena keeps what a run took."""
    process = psutil.Process()
    session = open_observing_session(index, [], running)
    before = process.memory_info().rss
    run_sample(session, index, list(index.outputs), feed)
    after = process.memory_info().rss
    return after + max(after - before, 0) * (running.at_once - 1)
