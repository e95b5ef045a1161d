"""The layers of a built engine, as TensorRT's engine inspector and ``trtexec --exportLayerInfo`` write them to JSON.

Both forms are read: up to TensorRT 10 `Bindings` and `Format/Datatype`, from 11 `I/O Tensors` and
the format and the data type apart (TensorRT documentation, migrating IEngineInspector from 10 to 11).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from qdq.engines.engine import Engine, EngineLayer, LayerTensor
from qdq.errors import LayerFileError, first_line
from qdq.target import Target

#: How the inspector spells data types, old and new.
_TYPES = {
    "Int8": "Int8", "UInt8": "UInt8", "FP32": "Float", "Float": "Float", "FP16": "Half", "Half": "Half", "BF16": "BFloat16", "BFloat16": "BFloat16",
    "FP8": "FP8", "Int32": "Int32", "Int64": "Int64", "Bool": "Bool", "Int4": "Int4", "FP4": "FP4",
}  # fmt: skip
_TYPE = re.compile(r"\b(?:" + "|".join(sorted(_TYPES, key=len, reverse=True)) + r")", re.IGNORECASE)
_BY_LOWER = {name.lower(): dtype for name, dtype in _TYPES.items()}

#: How it spells memory formats, and how `LayerTensor` does; the first that is found counts.
_FORMATS = (
    ("thirty-two wide", "32-wide"), ("sixteen wide", "16-wide"), ("four wide", "4-wide"), ("two wide", "2-wide"), ("channel major", "channel-last"),
    ("row major", "linear"),
)  # fmt: skip
_COPY = "Reformatting CopyNode"

#: A node in the metadata; several stand behind each other, newer versions put a record or unit separator between them.
_ONNX_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f]|\[ONNX Layer: |$))")
_SEPARATORS = re.compile(r" \+ | \|\| |, |\bPWN\(|[()\[\]]")
_DETAILED = "build it with trtexec --profilingVerbosity=detailed and export its layers again"


def read_layer_file(path: Path, target: Target, labels: Mapping[str, str]) -> Engine:
    """Return the engine that a JSON file of layers describes.

    `labels` gives the label of each ONNX node by the names that a layer may call it. Raises
    LayerFileError where the file cannot be read, holds no layers, or none in detail.
    """
    try:
        content = msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise LayerFileError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise LayerFileError(
            f"{path}: is not JSON ({first_line(error)}); pass what trtexec --exportLayerInfo or the engine inspector writes"
        ) from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not layers:
        raise LayerFileError(
            f"{path}: holds no 'Layers'; pass what trtexec --exportLayerInfo or the engine inspector writes"
        )
    version = "TensorRT 11 or later" if "I/O Tensors" in content else "TensorRT"
    return Engine(
        target,
        f"{version}, layers of {path.name}",
        tuple(
            read_inspector_layers(
                layers, lambda name, data: find_named_nodes(name, data, labels), str(path)
            )
        ),
    )


def read_inspector_layers(
    layers: Iterable[Any], nodes: Callable[[str, str], tuple[str, ...]], where: str
) -> Iterator[EngineLayer]:
    """Yield the layers in the inspector's list; `nodes` finds ONNX nodes in a layer's name and metadata, `where` names the list in messages.

    Raises LayerFileError for a layer without detail or of another form.
    """
    for i, layer in enumerate(layers):
        if isinstance(layer, str):
            raise LayerFileError(
                f"{where}: its layers are bare names, those of an engine built without detailed profiling verbosity; {_DETAILED}"
            )
        if not isinstance(layer, dict) or not isinstance(layer.get("Name"), str):
            raise LayerFileError(f"{where}: layer {i} has no Name; {_DETAILED}")
        yield EngineLayer(
            name=layer["Name"],
            kind=str(layer.get("LayerType", "")),
            inputs=tuple(_tensors(layer, "Inputs", where)),
            constants=tuple(_weights(layer)),
            outputs=tuple(_tensors(layer, "Outputs", where)),
            nodes=nodes(layer["Name"], str(layer.get("Metadata", ""))),
        )


def find_named_nodes(name: str, metadata: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """Return the labels of the ONNX nodes that a layer's name lists, and its metadata, each once, in order."""
    if name.startswith(_COPY):  # it names the layer that it copies for, and does nothing of its own
        return ()
    words = (
        [name]
        if name in labels
        else [part.strip() for part in (*name.split(" + "), *_SEPARATORS.split(name))]
    )
    words += [part.strip() for part in _ONNX_NODE.findall(metadata)]
    return tuple(dict.fromkeys(labels[word] for word in words if word in labels))


def _tensors(layer: Mapping[str, Any], side: str, where: str) -> Iterator[LayerTensor]:
    described = layer.get(side) or ()
    for tensor in described if isinstance(described, (list, tuple)) else [described]:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("Dimensions", []), list):
            raise LayerFileError(
                f"{where}: layer {layer['Name']!r} does not describe its {side.lower()}; {_DETAILED}"
            )
        layout = str(tensor.get("Format/Datatype") or tensor.get("Format") or "")
        dtype = str(
            tensor.get("Datatype")
            or tensor.get("DataType")
            or tensor.get("Format/Datatype")
            or layout
        )
        dims = tuple(d for d in tensor.get("Dimensions", ()) if isinstance(d, int))
        yield LayerTensor(str(tensor.get("Name", "")), dims, _data_type(dtype), _format(layout))


def _weights(layer: Mapping[str, Any]) -> Iterator[LayerTensor]:
    weights = layer.get("Weights") or layer.get("ConvWeights")
    if isinstance(weights, dict):
        count = weights.get("Count", 0)
        yield LayerTensor(
            "weights",
            (count if isinstance(count, int) else 0,),
            _data_type(str(weights.get("Type", ""))),
        )


def _data_type(text: str) -> str:
    found = _TYPE.search(text)
    return _BY_LOWER[found[0].lower()] if found else text


def _format(text: str) -> str:
    lower = text.lower()
    return next((ours for theirs, ours in _FORMATS if theirs in lower), "")
