"""JSON files of engine layers, as TensorRT's engine inspector and ``trtexec`` write them.

``trtexec --exportLayerInfo`` writes the inspector's JSON. Two forms are read: up to TensorRT 10
`Bindings` and `Format/Datatype`, from 11 `I/O Tensors` and the format and the data type apart
(TensorRT documentation, migrating IEngineInspector from 10 to 11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from qdq.engines.engine import Engine, EngineLayer, LayerTensor
from qdq.errors import LayerFileError, first_line
from qdq.files.command_files import note_input
from qdq.target import Target

#: Data types as the inspector writes them, old and new, and as `LayerTensor` does.
_TYPES = {
    "Int8": "Int8",
    "UInt8": "UInt8",
    "FP32": "Float",
    "Float": "Float",
    "FP16": "Half",
    "Half": "Half",
    "BF16": "BFloat16",
    "BFloat16": "BFloat16",
    "FP8": "FP8",
    "Int32": "Int32",
    "Int64": "Int64",
    "Bool": "Bool",
    "Int4": "Int4",
    "FP4": "FP4",
}
_TYPE_NAMES = "|".join(sorted(_TYPES, key=len, reverse=True))
_TYPE = re.compile(rf"\b(?:{_TYPE_NAMES})", re.IGNORECASE)
_TYPES_BY_LOWER = {name.lower(): dtype for name, dtype in _TYPES.items()}

#: Memory formats as the inspector writes them and as `LayerTensor` does; the first match counts.
_FORMATS = {
    "thirty-two wide": "32-wide",
    "sixteen wide": "16-wide",
    "four wide": "4-wide",
    "two wide": "2-wide",
    "channel major": "channel-last",
    "row major": "linear",
}
_COPY = "Reformatting CopyNode"

#: A node in a layer's metadata. Newer versions put a record or unit separator between nodes.
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f]|\[ONNX Layer: |$))")
_SEPARATORS = re.compile(r" \+ | \|\| |, |\bPWN\(|[()\[\]]")
_DETAILED = (
    "Build the engine with trtexec --profilingVerbosity=detailed and export its layers again."
)
_PASS_LAYERS = "Pass a file that trtexec --exportLayerInfo or the engine inspector writes."
_UTF8_MARK = b"\xef\xbb\xbf"


def read_layer_file(path: Path, target: Target, labels: Mapping[str, str]) -> Engine:
    """Return the engine that a JSON file of layers describes.

    `labels` maps the names that a layer may use for an ONNX node to the node's label. Raises
    LayerFileError where the file cannot be read, holds no layers, or none in detail.
    """
    content = _read_json(path)
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not layers:
        raise LayerFileError(f"{path}: the file has no 'Layers'. {_PASS_LAYERS}")

    def find_nodes(name: str, metadata: str) -> tuple[str, ...]:
        return find_named_nodes(name, metadata, labels)

    version = "TensorRT 11 or later" if "I/O Tensors" in content else "TensorRT"
    engine_layers = tuple(read_inspector_layers(layers, find_nodes, str(path)))
    return Engine(target, f"{version}, layers of {path.name}", engine_layers)


def _read_json(path: Path) -> Any:
    note_input(path)
    try:
        return msgspec.json.decode(path.read_bytes().removeprefix(_UTF8_MARK))
    except OSError as error:
        reason = error.strerror or error
        raise LayerFileError(f"{path}: the file cannot be read: {reason}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise LayerFileError(f"{path}: the file is not JSON ({reason}). {_PASS_LAYERS}") from error


def read_inspector_layers(
    layers: Iterable[Any], find_nodes: Callable[[str, str], tuple[str, ...]], location: str
) -> Iterator[EngineLayer]:
    """Yield the layers in the inspector's list.

    `find_nodes` returns the labels of the ONNX nodes in a layer's name and metadata. `location`
    names the list in messages. Raises LayerFileError for a layer without detail or of another
    form.
    """
    for number, layer in enumerate(layers):
        if isinstance(layer, str):
            raise LayerFileError(
                f"{location}: the layers are bare names: the engine was built without detailed "
                f"profiling verbosity. {_DETAILED}"
            )
        name = layer.get("Name") if isinstance(layer, dict) else None
        if not isinstance(name, str):
            raise LayerFileError(f"{location}: layer {number} has no Name. {_DETAILED}")
        metadata = str(layer.get("Metadata", ""))
        yield EngineLayer(
            name=name,
            kind=str(layer.get("LayerType", "")),
            inputs=tuple(_read_tensors(layer, "Inputs", location)),
            constants=tuple(_read_weights(layer)),
            outputs=tuple(_read_tensors(layer, "Outputs", location)),
            nodes=find_nodes(name, metadata),
        )


def find_named_nodes(name: str, metadata: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the labels of the ONNX nodes in a layer's name and its metadata.

    The labels come without duplicates, in order.
    """
    if name.startswith(_COPY):  # its name includes the layer that it copies for
        return ()
    if name in labels:
        candidates = [name]
    else:
        parts = (*name.split(" + "), *_SEPARATORS.split(name))
        candidates = [part.strip() for part in parts]
    candidates.extend(map(str.strip, _ONNX_NODE.findall(metadata)))
    node_labels = (labels[part] for part in candidates if part in labels)
    return tuple(dict.fromkeys(node_labels))


def _read_tensors(layer: Mapping[str, Any], side: str, location: str) -> Iterator[LayerTensor]:
    """Yield the tensors of one side of a layer, ``Inputs`` or ``Outputs``."""
    tensors = layer.get(side) or ()
    if not isinstance(tensors, (list, tuple)):
        tensors = [tensors]
    for tensor in tensors:
        dims = tensor.get("Dimensions", []) if isinstance(tensor, dict) else None
        if not isinstance(dims, list):
            name = layer["Name"]
            raise LayerFileError(
                f"{location}: layer {name!r} does not describe its {side.lower()}. {_DETAILED}"
            )
        yield _read_tensor(tensor, dims)


def _read_tensor(tensor: Mapping[str, Any], dims: list[Any]) -> LayerTensor:
    old_layout = tensor.get("Format/Datatype")
    layout = str(old_layout or tensor.get("Format") or "")
    dtype = tensor.get("Datatype") or tensor.get("DataType") or layout
    return LayerTensor(
        name=str(tensor.get("Name", "")),
        dims=tuple(size for size in dims if isinstance(size, int)),
        dtype=_parse_type(str(dtype)),
        format=_parse_format(layout),
    )


def _read_weights(layer: Mapping[str, Any]) -> Iterator[LayerTensor]:
    weights = layer.get("Weights") or layer.get("ConvWeights")
    if not isinstance(weights, dict):
        return
    count = weights.get("Count", 0)
    if not isinstance(count, int):
        count = 0
    dtype = str(weights.get("Type", ""))
    yield LayerTensor("weights", (count,), _parse_type(dtype))


def _parse_type(text: str) -> str:
    """Return the data type that a text names, or the text where it names none."""
    match = _TYPE.search(text)
    if match is None:
        return text
    name = match[0].lower()
    return _TYPES_BY_LOWER[name]


def _parse_format(text: str) -> str:
    """Return the memory format that a text names, or ""."""
    lower = text.lower()
    for phrase, layout in _FORMATS.items():
        if phrase in lower:
            return layout
    return ""
