"""Groups of observed tensors for several passes, where all of them do not fit in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, helper

from qdq.arrays import Feed
from qdq.errors import UsageError
from qdq.graph.index import GraphIndex
from qdq.observers.observer import RunSettings, open_observing_session
from qdq.observers.tensor_statistics import ObservedTensor
from qdq.ranges.histogram import BINS
from qdq.runtime.session import run_sample
from qdq.runtime.unknown_operators import find_computed_outputs, find_unknown_operators

MEGABYTE = 1_000_000

#: The bytes of the counts of one histogram.
_HISTOGRAM_BYTES = BINS * np.dtype(np.int64).itemsize

#: Copies of one tensor while it is measured and counted: its channels by grade and in other orders.
_WORKING_COPIES = 4


def split_into_passes(
    index: GraphIndex,
    observed: Sequence[ObservedTensor],
    feed: Feed,
    settings: RunSettings,
    limit: int,
) -> tuple[tuple[ObservedTensor, ...], ...]:
    """Return groups of tensors, one for each pass over the samples.

    A pass takes at most `limit` bytes of memory. The memory of the process and of a run of the
    model is measured with one sample, the tensors' sizes are inferred from it: larger samples take
    more. Raises UsageError where even one tensor at a time does not fit.
    """
    sizes = tensor_bytes(index, observed, feed)
    largest = max(sizes.values(), default=0)
    fixed = _measure_resident_memory(index, feed, settings)
    fixed += _WORKING_COPIES * largest
    fixed += _count_histograms(observed) * _HISTOGRAM_BYTES
    # ONNX Runtime computes in other memory layouts too, and freed memory does not come back whole
    copies = settings.samples_in_memory + 2 * settings.parallel_samples
    least = fixed + copies * largest
    if least > limit:
        megabytes = math.ceil(least / MEGABYTE)
        raise UsageError(
            f"{index.source.name}: a run that observes one tensor at a time takes {megabytes} MB. "
            f"Pass --max-memory {megabytes}MB or more."
        )
    return _fill_groups(observed, sizes, (limit - fixed) // copies)


def _fill_groups(
    observed: Sequence[ObservedTensor], sizes: Mapping[str, int], room: int
) -> tuple[tuple[ObservedTensor, ...], ...]:
    """Return groups of tensors in their order, each of at most `room` bytes."""
    groups: list[list[ObservedTensor]] = [[]]
    free = room
    for tensor in observed:
        size = sizes[tensor.read]
        if size > free:
            groups.append([])
            free = room
        groups[-1].append(tensor)
        free -= size
    return tuple(map(tuple, groups))


def _count_histograms(observed: Sequence[ObservedTensor]) -> int:
    """Return the number of histograms: one for each tensor, and one for each of its grades."""
    count = 0
    for tensor in observed:
        count += 1
        if tensor.grades:
            count += len(set(tensor.grades.of_channel))
    return count


def tensor_bytes(
    index: GraphIndex, observed: Sequence[ObservedTensor], feed: Feed
) -> Mapping[str, int]:
    """Return the bytes of each tensor for one sample.

    A tensor whose shape cannot be inferred counts as the largest of the others.
    """
    input_shapes = {name: values.shape for name, values in feed.items()}
    sample_index = GraphIndex(index.source, input_shapes)
    known: dict[str, int] = {}
    for tensor in observed:
        size = _infer_bytes(sample_index, tensor)
        if size is not None:
            known[tensor.read] = size
    largest = max(known.values(), default=0)
    return {tensor.read: known.get(tensor.read, largest) for tensor in observed}


def _infer_bytes(sample_index: GraphIndex, tensor: ObservedTensor) -> int | None:
    """Return the bytes of a tensor, None where its shape is not known."""
    path, name = tensor.source
    scope = sample_index.scopes[path]
    shape = scope.shape(name)
    if shape is None:
        return None
    size = 1
    for dim in shape:
        if dim is None:
            return None
        size *= dim
    elem_type = scope.elem_type(name) or TensorProto.FLOAT
    return size * helper.tensor_dtype_to_np_dtype(elem_type).itemsize


def _measure_resident_memory(index: GraphIndex, feed: Feed, settings: RunSettings) -> int:
    """Return the bytes of this process while the model runs: ONNX Runtime's arena keeps them."""
    import psutil

    process = psutil.Process()
    unknown = find_unknown_operators(index.source.model, settings.libraries)
    outputs = find_computed_outputs(index, unknown).names
    session = open_observing_session(index, outputs, settings)
    before = process.memory_info().rss
    run_sample(session, index, outputs, feed)
    after = process.memory_info().rss
    return after + max(after - before, 0) * (settings.parallel_samples - 1)
