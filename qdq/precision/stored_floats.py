"""Stored tensors in FP16 or BF16, and what their values lose."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from onnx import NodeProto, TensorProto, helper

from qdq.arrays import Array
from qdq.graph.bodies import read_tensor_values
from qdq.graph.float_types import FloatType, encode_floats, round_to_type
from qdq.quantizer import ElementType
from qdq.rewriting.stored_scales import store_scales


class WeightLoss(msgspec.Struct, frozen=True):
    """What the values of a stored tensor lose by their new type."""

    tensor: str
    values: int
    #: Values that the type does not hold; they become its largest.
    overflowing: int
    #: Values that become 0.
    lost: int
    #: Other values below the least normal one, which lose part of their precision.
    subnormal: int
    #: The signal-to-noise ratio of all values, in dB; infinite where nothing is lost.
    snr_db: float


class ModelFiles(msgspec.Struct, frozen=True):
    """The name of a model and the folder of its external data."""

    name: str
    folder: Path | None

    def read(self, tensor: TensorProto) -> Array:
        """Return the values of a stored tensor; raises ModelError where they cannot be read."""
        return read_tensor_values(tensor, self.name, self.folder)


def make_short_tensor(
    tensor: TensorProto, name: str, float_type: FloatType, files: ModelFiles
) -> tuple[TensorProto, WeightLoss | None]:
    """Return a copy of a float32 tensor in another type, and the loss of its values or None."""
    values = files.read(tensor)
    rounded = round_to_type(values, float_type)
    short = _make_tensor(tensor, name, float_type, encode_floats(rounded, float_type))
    return short, _measure_loss(name, values, rounded, float_type)


def make_short_scales(
    tensor: TensorProto, name: str, float_type: FloatType, element: ElementType, files: ModelFiles
) -> TensorProto:
    """Return a copy of the scales of a pair in another type, none of them 0.

    `element` is the type of the pair's integers.
    """
    values = files.read(tensor)
    if float_type.code == TensorProto.FLOAT16:
        stored = store_scales(values.ravel().tolist(), element, np.dtype(np.float16))
        floats = stored.astype(np.float32)
    else:
        floats = np.maximum(np.asarray(values, np.float32), np.float32(float_type.least_normal))
        floats = round_to_type(floats, float_type)
    return _make_tensor(tensor, name, float_type, encode_floats(floats, float_type))


def read_constant_tensor(node: NodeProto) -> TensorProto:
    """Return the float32 values of a Constant as a tensor."""
    for attribute in node.attribute:
        if attribute.name == "value_float":
            return helper.make_tensor("", TensorProto.FLOAT, [], [attribute.f])
        if attribute.name == "value_floats":
            count = len(attribute.floats)
            return helper.make_tensor("", TensorProto.FLOAT, [count], attribute.floats)
    value: TensorProto = node.attribute[0].t
    return value


def write_constant_tensor(node: NodeProto, tensor: TensorProto) -> None:
    """Give a Constant another value."""
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", tensor))


def store_in_constant(node: NodeProto, name: str, float_type: FloatType, files: ModelFiles) -> None:
    """Give a Constant its value in another type, and a name."""
    short, _ = make_short_tensor(read_constant_tensor(node), name, float_type, files)
    write_constant_tensor(node, short)
    node.output[0] = name


def _make_tensor(
    tensor: TensorProto, name: str, float_type: FloatType, content: bytes
) -> TensorProto:
    return TensorProto(
        name=name,
        data_type=float_type.code,
        dims=tensor.dims,
        raw_data=content,
        doc_string=tensor.doc_string,
    )


def _measure_loss(
    name: str, values: Array, rounded: Array, float_type: FloatType
) -> WeightLoss | None:
    """Return the loss of values beyond rounding, None where there is none."""
    magnitudes = np.abs(np.asarray(values, np.float32))
    is_finite = np.isfinite(magnitudes)
    overflowing = np.count_nonzero(is_finite & (magnitudes > float_type.largest))
    lost = np.count_nonzero((magnitudes > 0) & (rounded == 0))
    small = (magnitudes > 0) & (magnitudes < float_type.least_normal)
    if not overflowing and not small.any():
        return None
    finite = np.asarray(values, np.float64)[is_finite]
    noise = finite - rounded[is_finite]
    power = float(np.dot(finite.ravel(), finite.ravel()))
    noise_power = float(np.dot(noise.ravel(), noise.ravel()))
    snr_db = 10 * float(np.log10(power / noise_power)) if noise_power else float("inf")
    return WeightLoss(
        name,
        int(magnitudes.size),
        int(overflowing),
        int(lost),
        int(np.count_nonzero(small)) - int(lost),
        snr_db,
    )
