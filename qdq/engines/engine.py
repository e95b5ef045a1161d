"""Engines and their layers, read from the message that TensorRT-RTX's builder logs.

The builder logs it at VERBOSE severity when profiling verbosity is DETAILED.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

import msgspec

from qdq.engines.compilable_model import find_labels, replace_tokens
from qdq.target import Target

#: Bytes of one element of each data type.
_BYTES = {
    "Float": 4.0,
    "Half": 2.0,
    "BFloat16": 2.0,
    "Int8": 1.0,
    "UInt8": 1.0,
    "FP8": 1.0,
    "Bool": 1.0,
    "Int32": 4.0,
    "Int64": 8.0,
    "Int4": 0.5,
    "FP4": 0.5,
}
_UNKNOWN_TYPE_BYTES = 4.0

#: Layers that synchronise streams or branch: no work, and no kernel.
_NO_KERNEL = ("wait", "signal", "cjmp")

#: Data types that are multiplied; others are masks, lengths and indices.
_VALUE_TYPES = ("Float", "Half", "BFloat16", "FP8", "Int8")

#: A kernel that the compiler generates is named after its steps, in order:
#: ``__myl_CastMulCastCastMulFc_myl0_1``.
_GENERATED = re.compile(r"__myl_(?P<steps>[A-Za-z0-9]+?)_")
_STEP = re.compile(r"[A-Z][a-z0-9]*")
_PRODUCT_STEPS = ("Corr", "Fc")
_CAST_STEP = "Cast"
_ROUND_STEP = "Roun"

#: A kernel of both products of an attention, whose masks may come before query, key and value.
_ATTENTION = "_mha_"
_ATTENTION_OPERANDS = 3

#: Type of a layer that only gives memory another name or shape.
NO_OP = "NoOp"

#: Type of a layer that copies a tensor into another type or memory format; also of a separate Q
#: or DQ.
REFORMAT = "Reformat"
_TENSOR = re.compile(
    r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)"
)
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), "
    r"Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?, "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<rest>.*)"
)


class LayerTensor(msgspec.Struct, frozen=True):
    """A tensor that an engine layer reads or writes."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    #: Its memory format, such as ``linear`` or ``32-wide``; "" where the compiler names none.
    format: str = ""

    @property
    def bytes(self) -> float:
        """Size in memory, without padding."""
        elements = math.prod(max(size, 1) for size in self.dims)
        return elements * _BYTES.get(self.dtype, _UNKNOWN_TYPE_BYTES)


class EngineLayer(msgspec.Struct, frozen=True):
    """One layer of an engine: its kind, the tensors it reads and writes, and its ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    #: Labels of the ONNX nodes fused into it, as in `GraphIndex`.
    nodes: tuple[str, ...]
    #: For a predicted layer, the name of the documented rule that it follows.
    fusion_rule: str = ""

    @property
    def bytes(self) -> float:
        """Bytes of all tensors it reads and writes; 0 for a layer that only renames memory."""
        if self.kind == NO_OP:
            return 0.0
        tensors = (*self.inputs, *self.constants, *self.outputs)
        return sum(tensor.bytes for tensor in tensors)

    def reads_constant(self, dtype: str) -> bool:
        """Whether it reads a constant of a type, such as a weight that it keeps in ``Int4``."""
        return dtype in _list_types(self.constants)

    def multiplies(self, dtype: str) -> bool:
        """Whether it multiplies its first input in `dtype`, such as ``Int8``.

        The other factor is a constant or its second input, without masks. A generated kernel that
        casts before its product reads INT8 and multiplies floats, which does not count. One that
        rounds before it casts quantizes its input itself, which does.
        """
        steps = _list_generated_steps(self.name)
        if steps:
            product = _find_product(steps)
            if product is None:
                return False
            steps = steps[:product]
        for previous, step in itertools.pairwise(["", *steps]):
            if step == _CAST_STEP and previous != _ROUND_STEP:
                return False
        types = [tensor.dtype for tensor in self.inputs if tensor.dtype in _VALUE_TYPES]
        if _ATTENTION in self.name:
            types = _leave_out_masks(types)
        if _CAST_STEP not in steps and types[:1] != [dtype]:
            return False
        if types[1:2] == [dtype]:
            return True
        return dtype in _list_types(self.constants)

    def __str__(self) -> str:
        inputs = _join_types(self.inputs)
        constants = _join_types(self.constants)
        outputs = _join_types(self.outputs)
        return f"{self.kind} {inputs} -> {constants} -> {outputs}"


class Engine(msgspec.Struct, frozen=True):
    """The layers that a compiler built from a model for one target, or its refusal."""

    target: Target
    #: Compiler and version.
    compiler: str
    layers: tuple[EngineLayer, ...] = ()
    #: The compiler's message where it refused, else "".
    failure: str = ""
    #: Labels of the nodes that this message names.
    refused_nodes: tuple[str, ...] = ()

    @property
    def kernels(self) -> int:
        """The number of kernels that one inference starts."""
        return sum(layer.kind != NO_OP for layer in self.layers)

    @property
    def reformats(self) -> int:
        """The number of layers that only convert a type or memory format, separate Q and DQ too."""
        return sum(layer.kind == REFORMAT for layer in self.layers)

    @property
    def bytes(self) -> float:
        """Bytes that all layers read and write in one inference."""
        return sum(layer.bytes for layer in self.layers)


def _leave_out_masks(types: list[str]) -> list[str]:
    """Return the types of an attention's inputs from the one on that query, key and value have."""
    for position, dtype in enumerate(types):
        if types[position:].count(dtype) >= _ATTENTION_OPERANDS:
            return types[position:]
    return types


def read_layers(text: str, labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers in the builder's ``Layers:`` message.

    `labels` holds the labels of the model's nodes, which replace the tokens in the message.
    """
    for line in text.splitlines():
        layer = _LAYER.match(line.strip())
        if layer is None or layer["kind"] in _NO_KERNEL:
            continue
        yield EngineLayer(
            name=replace_tokens(layer["name"], labels),
            kind=layer["kind"],
            inputs=_read_tensors(layer["inputs"]),
            constants=_read_tensors(layer["constants"] or ""),
            outputs=_read_tensors(layer["outputs"]),
            nodes=find_labels(layer["rest"], labels),
        )


def _read_tensors(text: str) -> tuple[LayerTensor, ...]:
    tensors = []
    for tensor in _TENSOR.finditer(text):
        sizes = filter(None, tensor["dims"].split(","))
        dims = tuple(map(int, sizes))
        tensors.append(LayerTensor(tensor["name"], dims, tensor["dtype"]))
    return tuple(tensors)


def _list_generated_steps(name: str) -> list[str]:
    """Return the steps of a generated kernel, or [] for other kernels."""
    generated = _GENERATED.match(name)
    if generated is None:
        return []
    return _STEP.findall(generated["steps"])


def _find_product(steps: list[str]) -> int | None:
    """Return the position of the first product among the steps of a kernel, or None."""
    for position, step in enumerate(steps):
        if step in _PRODUCT_STEPS:
            return position
    return None


def _list_types(tensors: tuple[LayerTensor, ...]) -> list[str]:
    return [tensor.dtype for tensor in tensors]


def _join_types(tensors: tuple[LayerTensor, ...]) -> str:
    return ",".join(_list_types(tensors)) or "-"
