"""Weights whose channels were multiplied by powers of two: their record, and its undoing.

A power of two changes the exponent of a float alone, so that the product with its inverse restores
every bit, as long as no value leaves the range of the normal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import uses_external_data

from qdq.arrays import Array
from qdq.errors import ModelError, first_line
from qdq.graph.metadata import EQUALIZATION_KEY

#: Exponents of two, one per channel.
Exponents = npt.NDArray[np.int32]

#: The largest absolute value of an exponent: float16 holds the factor as a normal number.
LARGEST_EXPONENT = 12

#: The types whose values are scaled, as they are stored.
_STORED_TYPES: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.FLOAT16: np.dtype("<f2"),
}


class ScaledWeight(msgspec.Struct, frozen=True):
    """A stored tensor of the main graph, and the exponents of two that its channels have."""

    #: The initializer, or the result of the Constant that stores it.
    tensor: str
    axis: int
    #: One exponent per channel: the stored values were multiplied by 2**exponent.
    exponents: tuple[int, ...]
    #: Axis 0 is split into so many groups, and `axis` has other channels in each of them.
    groups: int = 1


class Equalization(msgspec.Struct, frozen=True):
    """Channels of connected tensors that were multiplied by powers of two."""

    #: The first of the tensors that layers multiply with weights.
    tensor: str
    #: The exponent of each of its channels: its values were multiplied by 2**exponent.
    exponents: tuple[int, ...]
    #: All tensors with other values than in the float model.
    tensors: tuple[str, ...]
    weights: tuple[ScaledWeight, ...]
    #: How much less INT8 noise was predicted in the layers that read the tensors, in decibels.
    gain_db: float


def read_equalizations(model: ModelProto, name: str = "model") -> tuple[Equalization, ...]:
    """Return the equalizations in the metadata of a model, none for a model without them.

    Raises ModelError, beginning with `name`, for an entry that cannot be read.
    """
    content = find_equalization_entry(model)
    if not content:
        return ()
    try:
        return msgspec.json.decode(content, type=tuple[Equalization, ...])
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid_entry(name, first_line(error).rstrip(".")) from error


def find_equalization_entry(model: ModelProto) -> str:
    """Return the metadata entry of a model's equalizations, "" where it has none."""
    for entry in model.metadata_props:
        if entry.key == EQUALIZATION_KEY:
            value: str = entry.value
            return value
    return ""


def write_equalizations(model: ModelProto, equalizations: tuple[Equalization, ...]) -> None:
    """Add equalizations to the metadata of a model that has none."""
    content = msgspec.json.encode(equalizations).decode()
    model.metadata_props.add(key=EQUALIZATION_KEY, value=content)


def undo_equalization(model: ModelProto, name: str = "model") -> None:
    """Restore the weights of an equalized model in place, and remove the record.

    Does nothing to other models. Raises ModelError, beginning with `name`, for a record that does
    not fit the model.
    """
    equalizations = read_equalizations(model, name)
    weights: list[ScaledWeight] = []
    for equalization in equalizations:
        weights += equalization.weights
    tensors = map_stored_tensors(model.graph)
    for weight in weights:
        _require_fit(weight, tensors, name)
    for weight in reversed(weights):
        exponents = -np.array(weight.exponents, np.int32)
        scale_stored_tensor(tensors[weight.tensor], weight, exponents)
    kept = [entry for entry in model.metadata_props if entry.key != EQUALIZATION_KEY]
    if len(kept) < len(model.metadata_props):
        del model.metadata_props[:]
        model.metadata_props.extend(kept)


def scale_weights(model: ModelProto, equalizations: Iterable[Equalization]) -> None:
    """Multiply the weights of a model in place by the factors of equalizations.

    Raises ModelError for equalizations of another model.
    """
    tensors = map_stored_tensors(model.graph)
    for equalization in equalizations:
        for weight in equalization.weights:
            _require_fit(weight, tensors, model.graph.name or "model")
            exponents = np.array(weight.exponents, np.int32)
            scale_stored_tensor(tensors[weight.tensor], weight, exponents)


def map_stored_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Return the tensors that the nodes of a graph store, and its initializers, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant" or not node.output:
            continue
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                tensors.setdefault(node.output[0], attribute.t)
    return tensors


def can_scale(tensor: TensorProto) -> bool:
    """Whether the values of a stored tensor can be scaled where they are.

    They can in float32 and float16. Data in another file is left alone, and float16 in the field
    of integers.
    """
    if tensor.data_type not in _STORED_TYPES or uses_external_data(tensor):
        return False
    return bool(tensor.raw_data) or bool(tensor.float_data)


def read_scalable_values(tensor: TensorProto) -> Array:
    """Return the values of a tensor for which `can_scale` is true."""
    dtype = _STORED_TYPES[tensor.data_type]
    if tensor.raw_data:
        values: Array = np.frombuffer(tensor.raw_data, dtype)
    else:
        values = np.array(tensor.float_data, dtype)
    return values.reshape(tuple(tensor.dims))


def scale_values(values: Array, axis: int, groups: int, exponents: Exponents) -> Array:
    """Return values with their channels multiplied by 2**exponent.

    In `groups` of axis 0, `axis` has other channels in each group.
    """
    view = split_groups(values, groups)
    factors = np.ldexp(values.dtype.type(1.0), exponents)
    shape = [1] * view.ndim
    if groups > 1:
        shape[0] = groups
        axis += 1
    shape[axis] = exponents.size // groups
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled: Array = view * factors.reshape(shape)
    return scaled.reshape(values.shape)


def split_groups(values: Array, groups: int) -> Array:
    """Return values with axis 0 split into groups; unchanged for one group."""
    if groups == 1:
        return values
    return values.reshape(groups, -1, *values.shape[1:])


def scale_stored_tensor(
    tensor: TensorProto,
    weight: ScaledWeight,
    exponents: Exponents,
) -> None:
    """Multiply the channels of a stored tensor in place by 2**exponent."""
    values = read_scalable_values(tensor)
    scaled = scale_values(values, weight.axis, weight.groups, exponents)
    if tensor.raw_data:
        tensor.raw_data = scaled.tobytes()
    else:
        tensor.float_data[:] = scaled.ravel().tolist()


def _require_fit(weight: ScaledWeight, tensors: dict[str, TensorProto], name: str) -> None:
    """Raise ModelError for a record that does not fit the stored tensor that it names."""
    problem = next(_find_misfits(weight, tensors.get(weight.tensor)), None)
    if problem is not None:
        raise _invalid_entry(name, f"the weight {weight.tensor!r} {problem}")


def _find_misfits(weight: ScaledWeight, tensor: TensorProto | None) -> Iterator[str]:
    """Yield the reasons why a record does not fit a stored tensor."""
    if tensor is None:
        yield "is not stored in the model"
        return
    dims = tuple(tensor.dims)
    if not can_scale(tensor) or _count_values(tensor) != math.prod(dims):
        yield "does not hold float32 or float16 values"
    if not 0 <= weight.axis < len(dims):
        yield f"has no axis {weight.axis}"
        return
    has_groups = weight.groups > 1
    if weight.groups < 1 or (has_groups and (weight.axis == 0 or dims[0] % weight.groups)):
        yield f"has no {weight.groups} groups"
    channels = dims[weight.axis] * weight.groups
    if len(weight.exponents) != channels:
        yield f"has {channels} channels, not {len(weight.exponents)}"
    if any(abs(exponent) > LARGEST_EXPONENT for exponent in weight.exponents):
        yield f"has exponents above {LARGEST_EXPONENT}"


def _count_values(tensor: TensorProto) -> int:
    """Return the number of values that a tensor for which `can_scale` is true stores."""
    if tensor.raw_data:
        return len(tensor.raw_data) // _STORED_TYPES[tensor.data_type].itemsize
    return len(tensor.float_data)


def _invalid_entry(name: str, problem: str) -> ModelError:
    return ModelError(
        f"{name}: the metadata entry {EQUALIZATION_KEY!r} is invalid: {problem}. "
        "Quantize the float model again."
    )
