"""Engines and their layers, read from the message that TensorRT-RTX's builder logs.

The builder logs it at VERBOSE severity when profiling verbosity is DETAILED.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import msgspec

from qdq.engines.compilable_model import find_labels, replace_tokens
from qdq.target import Target

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

#: Layers that synchronise streams or branch: no work, and no kernel.
_NO_KERNEL = ("wait", "signal", "cjmp")

#: Data types that are multiplied; others are masks, lengths and indices.
_VALUES = ("Float", "Half", "BFloat16", "FP8", "Int8")

#: A kernel that the compiler generates is named after what it computes, in order: ``__myl_CastMulCastCastMulFc_myl0_1``.
_GENERATED = re.compile(r"__myl_(?P<steps>[A-Za-z0-9]+?)_")
_STEP = re.compile(r"[A-Z][a-z0-9]*")
_PRODUCTS = ("Corr", "Fc")
_QUANTIZING = "Roun"

#: A layer that only gives memory another name or shape.
NO_OP = "NoOp"

#: A layer that copies a tensor into another type or memory format; a Q or DQ of its own is one too.
REFORMAT = "Reformat"
_TENSOR = re.compile(
    r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)"
)
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?, "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<rest>.*)"
)


class LayerTensor(msgspec.Struct, frozen=True):
    """A tensor that an engine layer reads or writes."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    #: How it lies in memory, such as ``linear`` or ``32-wide``; "" where the compiler does not say.
    format: str = ""

    @property
    def bytes(self) -> float:
        """Size in memory, without padding."""
        return math.prod(max(d, 1) for d in self.dims) * _BYTES.get(self.dtype, 4.0)


class EngineLayer(msgspec.Struct, frozen=True):
    """One layer of an engine: what runs, on which types, for which ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    #: Labels of the ONNX nodes fused into it, as `GraphIndex` gives them.
    nodes: tuple[str, ...]
    #: For a predicted layer, the name of the documented rule that it follows.
    fusion_rule: str = ""

    @property
    def bytes(self) -> float:
        """Bytes of everything it reads and writes; none for a layer that only gives memory another name."""
        return (
            0.0
            if self.kind == NO_OP
            else sum(t.bytes for t in (*self.inputs, *self.constants, *self.outputs))
        )

    def multiplies(self, dtype: str) -> bool:
        """Whether it multiplies its first input with a constant or its second input in `dtype`, such as ``Int8``; masks aside.

        A generated kernel that casts before its product reads INT8 and multiplies floats: that does
        not count. One that rounds and casts, and no more, quantizes its input itself: that does.
        """
        before = self._before_product()
        casts = [i for i, step in enumerate(before) if step == "Cast"]
        if any(before[i - 1] != _QUANTIZING for i in casts):
            return False
        types = [t.dtype for t in self.inputs if t.dtype in _VALUES]
        if not casts and types[:1] != [dtype]:
            return False
        return types[1:2] == [dtype] or any(t.dtype == dtype for t in self.constants)

    def _before_product(self) -> list[str]:
        """Return the steps of a generated kernel up to its product: none for other kernels, a cast for one without a product."""
        found = _GENERATED.match(self.name)
        steps = _STEP.findall(found["steps"]) if found else []
        product = next((i for i, step in enumerate(steps) if step in _PRODUCTS), None)
        return steps[:product] if product is not None else ["", "Cast"] if steps else []

    def __str__(self) -> str:
        parts = (self.inputs, self.constants, self.outputs)
        return f"{self.kind} " + " -> ".join(
            ",".join(t.dtype for t in part) or "-" for part in parts
        )


class Engine(msgspec.Struct, frozen=True):
    """What the compiler made of a model for one target."""

    target: Target
    #: Compiler and version.
    compiler: str
    layers: tuple[EngineLayer, ...] = ()
    #: The compiler's words where it refused, else "".
    failure: str = ""
    #: Labels of the nodes that these words name.
    refused_nodes: tuple[str, ...] = ()

    @property
    def kernels(self) -> int:
        """How many kernels one inference starts."""
        return sum(layer.kind != NO_OP for layer in self.layers)

    @property
    def reformats(self) -> int:
        """How many layers only convert a tensor to another type or memory format, stand-alone Q and DQ among them."""
        return sum(layer.kind == REFORMAT for layer in self.layers)

    @property
    def bytes(self) -> float:
        """Bytes that all layers read and write in one inference."""
        return sum(layer.bytes for layer in self.layers)


def read_layers(text: str, labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers in the builder's ``Layers:`` message; `labels` name the nodes that its tokens stand for."""
    for line in text.splitlines():
        found = _LAYER.match(line.strip())
        if not found or found["kind"] in _NO_KERNEL:
            continue
        yield EngineLayer(
            replace_tokens(found["name"], labels),
            found["kind"],
            _tensors(found["inputs"]),
            _tensors(found["constants"] or ""),
            _tensors(found["outputs"]),
            find_labels(found["rest"], labels),
        )


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(t["name"], tuple(int(d) for d in t["dims"].split(",") if d), t["dtype"])
        for t in _TENSOR.finditer(text)
    )
