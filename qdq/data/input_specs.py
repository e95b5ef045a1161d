"""The inputs that a model must be fed, and checks of a sample against them."""

from __future__ import annotations

import lzma
import struct
import tokenize
import warnings
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

#: The source of a sample, for messages, and the sample.
Named = tuple[str, Sample]

#: Errors of numpy and zipfile for damaged or pickled content, and for objects that are no arrays.
#: A .npy file's header is parsed as Python.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    ArithmeticError,
    LookupError,
    AttributeError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
)


class LazyArrays(Mapping[str, Array]):
    """Arrays by name, each of them read when it is asked for."""

    def __init__(self, readers: Mapping[str, Callable[[], Array]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> Array:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


class InputSpec(msgspec.Struct, frozen=True):
    """One input that the model must be fed."""

    name: str
    #: numpy's name of the element type.
    dtype: str
    #: Dimensions, None for each dynamic one.
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        dims = ("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{', '.join(dims)}]"

    def has_shape_of(self, array: Array) -> bool:
        """Whether an array has this rank, and this size on every axis that is fixed."""
        if array.ndim != len(self.shape):
            return False
        sizes = zip(self.shape, array.shape, strict=True)
        return all(size in (None, actual) for size, actual in sizes)


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
    """Return the inputs of a model without initializers that are listed as inputs.

    Raises ModelError for an input that is no tensor of a known type.
    """
    return tuple(_input_spec(index, value) for value in index.inputs.values())


def _input_spec(index: GraphIndex, value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    # A size that is absent or symbolic reads as 0.
    shape = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError as error:
        raise ModelError(
            f"{index.source.name}: input {value.name!r} is no tensor of a known type, so nothing "
            "can be fed to it. Export it as a tensor."
        ) from error
    return InputSpec(value.name, dtype, shape)


def join_input_names(specs: Iterable[InputSpec]) -> str:
    """Return the inputs' names for a message."""
    return ", ".join(repr(spec.name) for spec in specs)


def find_array(spec: InputSpec, sample: Any, location: str) -> Array:
    """Return the array of a sample for an input; raises DataError where there is none."""
    if not isinstance(sample, Mapping):
        raise DataError(
            f"{location}: the sample is of type {type(sample).__name__}. "
            "Each sample must map input names to arrays."
        )
    if spec.name not in sample:
        known = [str(name) for name in sample]
        names = ", ".join(map(repr, known)) or "nothing"
        hint = did_you_mean(spec.name, known)
        raise DataError(
            f"{location}: the sample has no array for input {spec.name!r}; it holds {names}"
            f"{hint} Name arrays after inputs."
        )
    return read_array(sample, spec.name, "input", location)


def read_array(sample: Sample, name: str, role: str, location: str) -> Array:
    """Return an array that a sample holds; raises DataError where numpy cannot read it.

    `role` is "input", or "array" for one that is no input of the model.
    """
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            # Headers that Python 2 wrote are read; a size that no array has is refused.
            warnings.simplefilter("ignore")
            return np.asarray(sample[name])
    except UNREADABLE as error:
        raise DataError(
            f"{location}: {role} {name!r} cannot be read: {first_line(error)}. "
            "Save it again as numbers."
        ) from error


def check_array(spec: InputSpec, sample: Sample, location: str) -> Array:
    """Return the array of a sample for an input, contiguous.

    Raises DataError where its type, shape or values do not fit.
    """
    array = find_array(spec, sample, location)
    if str(array.dtype) != spec.dtype:
        raise DataError(
            f"{location}: input {spec.name!r} holds {array.dtype}, the model needs {spec.dtype}. "
            f"Convert it with .astype({spec.dtype!r})."
        )
    if not spec.has_shape_of(array):
        raise DataError(
            f"{location}: input {spec.name!r} has shape {list(array.shape)}, "
            f"the model needs {spec}. Change the shape of the data."
        )
    if array.size == 0:
        raise DataError(f"{location}: input {spec.name!r} is empty. Remove the sample.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{location}: input {spec.name!r} holds NaN or Inf. Fix the data.")
    return np.asarray(array, order="C")  # np.ascontiguousarray makes a vector of a scalar
