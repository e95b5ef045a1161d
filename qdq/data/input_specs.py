"""What a model must be fed, and whether a sample is that."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import onnx

from qdq.arrays import Array
from qdq.errors import DataError, ModelError, did_you_mean, first_line
from qdq.graph.index import GraphIndex

Sample = Mapping[str, Array]

#: Where a sample comes from, for messages, and the sample.
Named = tuple[str, Sample]

#: What numpy and zipfile raise for damaged or pickled content, and for objects that are no arrays.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zlib.error,
    zipfile.BadZipFile,
)


class InputSpec(msgspec.Struct, frozen=True):
    """One input that the model must be fed."""

    name: str
    #: numpy's name of the element type.
    dtype: str
    #: Dimensions, None for each dynamic one.
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if d is None else str(d) for d in self.shape)}]"


Specs = tuple[InputSpec, ...]


@dataclass(frozen=True)
class Indexed:
    """Samples that are counted and can be read in any order."""

    #: What they are, for reports.
    name: str
    count: int
    at: Callable[[int], Named]


@dataclass(frozen=True)
class Streamed:
    """Samples that can only be read from the first on."""

    #: What they are, for reports.
    name: str
    read: Callable[[], Iterator[Named]]
    #: Whether `read` can be called only once.
    once: bool = False


Series = Indexed | Streamed


def input_specs(index: GraphIndex) -> Specs:
    """Return what must be fed to a model; initializers listed as inputs are left out."""
    specs = []
    for name, value in index.inputs.items():
        tensor = value.type.tensor_type
        dims = tuple(
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None
            for d in tensor.shape.dim
        )
        try:
            dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except KeyError as error:
            raise ModelError(
                f"{index.source.name}: input {name!r} is no tensor of a known type, so nothing can be fed to it; export it as a tensor"
            ) from error
        specs.append(InputSpec(name, dtype, dims))
    return tuple(specs)


def join_input_names(specs: Iterable[InputSpec]) -> str:
    """Return the inputs' names for a message."""
    return ", ".join(repr(s.name) for s in specs)


def find_array(spec: InputSpec, sample: Any, where: str) -> Array:
    """Return what a sample holds for an input; raises DataError where it holds nothing or no array."""
    if not isinstance(sample, Mapping):
        raise DataError(
            f"{where}: is of type {type(sample).__name__}; each sample must map input names to arrays"
        )
    if spec.name not in sample:
        known = [str(name) for name in sample]
        holds = ", ".join(map(repr, known)) or "nothing"
        raise DataError(
            f"{where}: has no array for input {spec.name!r}; it holds {holds}{did_you_mean(spec.name, known)}; name arrays after inputs"
        )
    try:
        return np.asarray(sample[spec.name])
    except UNREADABLE as error:
        raise DataError(
            f"{where}: input {spec.name!r} cannot be read: {first_line(error)}; save it again as numbers"
        ) from error


def check_array(spec: InputSpec, sample: Sample, where: str) -> Array:
    """Return the array that a sample holds for an input; raises DataError where its type, shape or values do not fit."""
    array = find_array(spec, sample, where)
    if str(array.dtype) != spec.dtype:
        raise DataError(
            f"{where}: input {spec.name!r} holds {array.dtype}, the model wants {spec.dtype}; convert it with .astype({spec.dtype!r})"
        )
    fits = array.ndim == len(spec.shape) and all(
        want in (None, got) for want, got in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(
            f"{where}: input {spec.name!r} has shape {list(array.shape)}, the model wants {spec}; make it fit"
        )
    if array.size == 0:
        raise DataError(f"{where}: input {spec.name!r} is empty; leave the sample out")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{where}: input {spec.name!r} holds NaN or Inf; mend the data")
    return np.ascontiguousarray(array)
