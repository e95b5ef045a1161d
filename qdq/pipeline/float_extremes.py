"""The largest absolute values of the tensors of a model, measured on samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from onnx import TensorProto

from qdq.arrays import Array, Feed
from qdq.data.feeds import DataLike, open_feeds
from qdq.data.sample_recorder import read_samples_again
from qdq.errors import QdqError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.pipeline.quantize_request import CalibrationOptions
from qdq.runtime.session import open_session, run_sample

#: The samples of calibration that are run: those of the guard, as far as they go.
_SAMPLES = 4

#: The tensors that are read in one run, so that memory holds a part of the activations.
_TENSORS_AT_ONCE = 64


def measure_extremes(
    model: ModelLike,
    data: DataLike,
    *,
    batch: int | None = None,
    ort_libraries: Iterable[str | Path] = (),
) -> dict[str, float]:
    """Return the largest absolute value of each float32 tensor of the main graph, by name.

    All samples are run. It is what `qdq.cast` takes as `amax`. Raises ModelError where ONNX Runtime
    cannot run the model, and DataError for samples that do not fit.
    """
    index = GraphIndex(load(model))
    feeds = open_feeds(index, data, batch)
    return _run_samples(index, feeds, [Path(path) for path in ort_libraries])


def sample_extremes(index: GraphIndex, options: CalibrationOptions) -> dict[str, float]:
    """Return the same on a few of the samples of calibration.

    The result is empty without samples, and where ONNX Runtime cannot run the model with all
    tensors as outputs.
    """
    if options.data is None:
        return {}
    try:
        samples = read_samples_again(index, options.data, options.batch, _SAMPLES)
        feeds = (sample.feed for sample in samples)
        return _run_samples(index, feeds, options.observing.ort_libraries)
    except QdqError:
        return {}


def _run_samples(
    index: GraphIndex, feeds: Iterable[Feed], libraries: Iterable[Path]
) -> dict[str, float]:
    names = list(_list_tensors(index))
    extremes: dict[str, float] = {}
    session = open_session(
        index, [name for name in names if name not in index.outputs], libraries=libraries
    )
    for feed in feeds:
        for start in range(0, len(names), _TENSORS_AT_ONCE):
            part = names[start : start + _TENSORS_AT_ONCE]
            for name, values in run_sample(session, index, part, feed):
                extremes[name] = max(extremes.get(name, 0.0), _find_largest(values))
    return extremes


def _list_tensors(index: GraphIndex) -> Iterator[str]:
    """Yield the float32 tensors that nodes of the main graph compute from the inputs."""
    for node in index.nodes:
        for name in node.outputs:
            is_computed = name and not index.is_constant(name)
            if is_computed and index.elem_type(name) == TensorProto.FLOAT:
                yield name


def _find_largest(values: Array) -> float:
    """Return the largest finite absolute value, 0 where there is none."""
    if values.dtype.kind != "f" or not values.size:
        return 0.0
    magnitudes = np.abs(values)
    largest = float(magnitudes.max())
    if np.isfinite(largest):
        return largest
    return float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0.0))
