"""A loaded model with its digest and the folder of its external data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Union

import msgspec
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from qdq.errors import ModelError
from qdq.graph.bodies import all_graphs, all_tensors, node_tensors
from qdq.graph.model_location import ModelLocation
from qdq.graph.quantized_operators import DEQUANTIZE, QUANTIZE
from qdq.graph.tensor_sizes import count_value_bytes
from qdq.printable import encodable_name

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

#: The forms in which the library's functions take a model.
ModelLike = Union[str, Path, ModelProto, "gs.Graph", "Source"]

_FLOAT_TYPES = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)

#: Weights up to this many bytes stay in a light copy.
_LARGEST_LIGHT_BYTES = 1 << 12


class Source(msgspec.Struct, frozen=True):
    """A loaded float model, raised to the opset that Q/DQ needs, its own functions inlined."""

    #: The file it was read from, or None for a model built in memory.
    path: Path | None
    #: The model; treated as read-only by every stage.
    model: ModelProto
    #: SHA-256 of the file (and of its external data), or of the model's canonical bytes.
    digest: str
    #: Changes by the loader, one sentence each: an opset or IR version raised, functions inlined.
    notes: tuple[str, ...] = ()
    #: Size and modification time of the file when it was read.
    stamp: tuple[int, int] | None = None
    #: The opset of the model before it was raised, 0 where that is not known.
    given_opset: int = 0
    #: The IR version of the model before it was raised, 0 where that is not known.
    given_ir_version: int = 0

    @property
    def name(self) -> str:
        """The file's name, or the graph's."""
        if self.path:
            return encodable_name(self.path.name)
        return self.model.graph.name or "model"

    @property
    def folder(self) -> Path | None:
        """The folder that external data is relative to."""
        return self.path.parent if self.path else None

    @property
    def location(self) -> ModelLocation:
        """The name and the folder, as the reading of stored tensors takes them."""
        return ModelLocation(self.name, self.folder)

    @property
    def external_files(self) -> tuple[str, ...]:
        """Relative paths of the files that hold external data of the model's tensors."""
        return tuple(external_locations(self.model))


def canonical_bytes(model: ModelProto) -> bytes:
    """Return the model's serialisation, which is the same for the same model.

    Only the order of map fields is free in protobuf, and ONNX's messages have none.
    Raises ModelError above protobuf's 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString()
    except ValueError as error:
        raise too_large(model) from error
    return content


def too_large(model: ModelProto) -> ModelError:
    """Return the error for a model that protobuf cannot serialise."""
    return ModelError(
        f"{model.graph.name or 'model'}: the model is larger than 2 GiB in memory. "
        "Save its weights as external data first."
    )


def light_copy(model: ModelProto) -> ModelProto:
    """Return a copy without the data of large float weights, for work on the graph alone.

    Their names, types and dimensions stay. Stripping reads the values of other weights, and scales.
    """
    scales = _find_scales(model.graph)

    def lighten(tensor: TensorProto) -> TensorProto:
        is_small = len(tensor.dims) <= 1 or count_value_bytes(tensor) <= _LARGEST_LIGHT_BYTES
        is_float = tensor.data_type in _FLOAT_TYPES
        if is_small or not is_float or tensor.name in scales:
            return tensor
        return TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)

    return copy_with_initializers(model, lighten)


def copy_with_initializers(
    model: ModelProto, replace: Callable[[TensorProto], TensorProto]
) -> ModelProto:
    """Return a copy of a model with what `replace` returns for each initializer of its graph.

    The values of an initializer that is replaced are not copied.
    """
    copy = ModelProto()
    copy_fields(model, copy, excluded="graph")
    copy_fields(model.graph, copy.graph, excluded="initializer")
    copy.graph.initializer.extend(map(replace, model.graph.initializer))
    return copy


def _find_scales(main_graph: GraphProto) -> set[str]:
    """Return the names of the scales of pairs in a graph and its bodies."""
    scales: set[str] = set()
    for graph in all_graphs(main_graph):
        for node in graph.node:
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                scales.update(node.input[1:2])
    return scales


def copy_fields(source: Message, copy: Message, excluded: str) -> None:
    """Copy every field that is set, except for one."""
    for field, value in source.ListFields():
        if field.name == excluded:
            continue
        if field.is_repeated:
            getattr(copy, field.name).extend(value)
        elif field.message_type:
            getattr(copy, field.name).CopyFrom(value)
        else:
            setattr(copy, field.name, value)


def external_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model, its bodies and functions whose data is in another file."""
    function_nodes = chain.from_iterable(function.node for function in model.functions)
    for tensor in chain(all_tensors(model.graph), node_tensors(function_nodes)):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield tensor


def external_locations(model: ModelProto) -> list[str]:
    """Return the relative paths of the files with external data, sorted."""
    locations = {ExternalDataInfo(tensor).location for tensor in external_tensors(model)}
    return sorted(locations)


def file_stamp(path: Path) -> tuple[int, int] | None:
    """Return the size and modification time of a file, None where it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
