"""The record of corrected biases of a model whose biases are cast."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from onnx import ModelProto, NodeProto, TensorProto

from qdq.graph.float_types import FloatType
from qdq.graph.metadata import BIASES_KEY
from qdq.graph.pairs import stored_tensors
from qdq.precision.stored_floats import ModelFiles, make_short_tensor, store_in_constant
from qdq.quantized.corrected_biases import (
    AddedBias,
    ChangedBias,
    CorrectedBias,
    checksum_values,
    write_corrected_biases,
)


def write_bias_records(
    model: ModelProto,
    records: tuple[CorrectedBias, ...],
    copies: dict[str, str],
    float_type: FloatType,
    files: ModelFiles,
) -> None:
    """Write the records of corrected biases into a cast model, as they fit its biases.

    `copies` maps biases that are there in both types to the names of the short ones.
    """
    if not records:
        return
    remaining = [entry for entry in model.metadata_props if entry.key != BIASES_KEY]
    kept = ModelProto(metadata_props=remaining)
    del model.metadata_props[:]
    model.metadata_props.extend(kept.metadata_props)
    stored = stored_tensors(model.graph)
    cast_records: list[CorrectedBias] = []
    for record in records:
        cast_records += _cast_record(record, stored, copies, float_type, files)
    write_corrected_biases(model, tuple(cast_records))


def _cast_record(
    record: CorrectedBias,
    stored: dict[str, TensorProto],
    copies: dict[str, str],
    float_type: FloatType,
    files: ModelFiles,
) -> Iterator[CorrectedBias]:
    for name in filter(None, (record.tensor, copies.get(record.tensor))):
        tensor = stored[name]
        checksum = checksum_values(files.read(tensor))
        if isinstance(record, AddedBias):
            yield msgspec.structs.replace(record, tensor=name, checksum=checksum)
        elif tensor.data_type == float_type.code:
            original = _cast_original(record, name, float_type, files)
            yield ChangedBias(name, original, checksum)
        else:
            yield record


def _cast_original(
    record: ChangedBias, name: str, float_type: FloatType, files: ModelFiles
) -> bytes:
    """Return the original of a changed bias in the short type: a tensor or a Constant."""
    tensor = TensorProto.FromString(record.original)
    if tensor.name == record.tensor:
        short, _ = make_short_tensor(tensor, name, float_type, files)
        content: bytes = short.SerializeToString()
        return content
    node = NodeProto.FromString(record.original)
    store_in_constant(node, name, float_type, files)
    content = node.SerializeToString()
    return content
