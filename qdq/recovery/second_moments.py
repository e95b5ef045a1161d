"""Second moments of the inputs of layers: sums over samples of the products of two inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from qdq.arrays import Array, Feed, Floats
from qdq.graph.index import GraphIndex
from qdq.recovery.product_rows import ProductLayout
from qdq.runtime.session import exact_options, open_session, sample_errors

#: The positions of a sample that are summed: neighbouring ones differ little.
_MOST_POSITIONS = 512

#: The positions that are multiplied at once.
_BATCH_POSITIONS = 1024

#: The bytes of moments that are summed in one pass over the samples.
_LARGEST_PASS_BYTES = 1 << 30

_FLOAT64_BYTES = 8

#: A weight's layer: the tensor that it is multiplied with, and how.
Layer = tuple[str, ProductLayout]


def sum_second_moments(
    index: GraphIndex,
    layers: Sequence[Layer],
    feeds: Sequence[Feed],
    libraries: Sequence[Path] = (),
) -> Iterator[dict[Layer, Floats]]:
    """Yield the moments of some layers of the main graph, [groups, inputs, inputs] each.

    All layers are in one of the results; each takes a pass over the samples. Raises DataError where
    ONNX Runtime fails on a sample.
    """
    for part in _split(layers):
        yield _sum_part(index, part, feeds, libraries)


def _split(layers: Iterable[Layer]) -> Iterator[list[Layer]]:
    part: list[Layer] = []
    size = 0
    for layer in dict.fromkeys(layers):
        layout = layer[1]
        layer_size = layout.groups * layout.inputs**2 * _FLOAT64_BYTES
        if part and size + layer_size > _LARGEST_PASS_BYTES:
            yield part
            part, size = [], 0
        part.append(layer)
        size += layer_size
    if part:
        yield part


def _sum_part(
    index: GraphIndex, part: list[Layer], feeds: Sequence[Feed], libraries: Sequence[Path]
) -> dict[Layer, Floats]:
    computed = {tensor for tensor, _ in part} - index.inputs.keys()
    names = sorted(computed)
    session = open_session(index, names, exact_options(), libraries=libraries) if names else None
    sums = {layer: MomentSum(layer[1]) for layer in part}
    for feed in feeds:
        values = dict(feed)
        with sample_errors(index):
            results = session.run(names, feed) if session else ()
        values.update(zip(names, results, strict=True))
        for (tensor, _), total in sums.items():
            total.add(values[tensor])
    return {layer: total.finish() for layer, total in sums.items()}


class MomentSum:
    """The second moments of one layer's input, with positions that are not multiplied yet."""

    def __init__(self, layout: ProductLayout) -> None:
        self._layout = layout
        self._sums = np.zeros((layout.groups, layout.inputs, layout.inputs))
        self._waiting: list[Array] = []

    def add(self, values: Array) -> None:
        """Add the input of a sample."""
        columns = self._layout.to_columns(values.astype(np.float32), _MOST_POSITIONS)
        self._waiting.append(columns)
        if sum(item.shape[1] for item in self._waiting) >= _BATCH_POSITIONS:
            self._multiply()

    def finish(self) -> Floats:
        """Return the sums, [groups, inputs, inputs]."""
        if self._waiting:
            self._multiply()
        return self._sums

    def _multiply(self) -> None:
        columns = np.concatenate(self._waiting, axis=1)
        self._waiting.clear()
        self._sums += np.swapaxes(columns, 1, 2) @ columns
