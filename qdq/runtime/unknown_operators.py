"""The operators that ONNX Runtime lacks, such as TensorRT's plugins, and what depends on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from qdq.errors import UsageError, runtime_line
from qdq.graph.index import GraphIndex, Node
from qdq.graph.plugins import (
    DEFAULT_DOMAINS,
    OperatorId,
    iterate_nodes,
    list_missing_imports,
    list_plugins,
)
from qdq.graph.subgraph import iterate_needed_nodes
from qdq.optional_packages import onnxruntime as ort
from qdq.runtime.devices import CPU

#: Errors of ONNX Runtime (1.31): about an operator in a domain of its own that it does not know,
#: and about an input whose type its operator does not accept.
_NOT_REGISTERED, _TYPE_ERROR = "is not a registered function/op", "Type Error"

_FATAL_LEVEL = 4
_FLOAT_TYPES = (
    TensorProto.UNDEFINED,
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
)


def register_libraries(options: ort.SessionOptions, libraries: Iterable[Path]) -> None:
    """Add libraries of custom operators to the options of a session.

    Raises UsageError for one that is missing or cannot be loaded.
    """
    for library in libraries:
        if not library.is_file():
            raise UsageError(
                f"{library}: no such file exists. Pass a library of operators to --ort-library."
            )
        try:
            options.register_custom_ops_library(str(library.resolve()))
        except Exception as error:  # ONNX Runtime documents none
            raise UsageError(
                f"{library}: ONNX Runtime cannot load it: {runtime_line(error).rstrip('.')}. "
                "Pass a library of operators for this version of ONNX Runtime to --ort-library."
            ) from error


def find_unknown_operators(
    model: ModelProto, libraries: Sequence[Path] = ()
) -> frozenset[OperatorId]:
    """Return the operators of a model that neither ONNX Runtime nor a library has."""
    plugins = list_plugins(model)
    unknown: set[OperatorId] = set()
    for node in iterate_nodes(model.graph.node):
        operator = (node.domain, node.op_type)
        if operator in plugins and operator not in unknown:
            plugins -= {operator}
            if _is_unknown(node, model, libraries):
                unknown.add(operator)
    return frozenset(unknown)


def _is_unknown(node: NodeProto, model: ModelProto, libraries: Iterable[Path]) -> bool:
    """Whether ONNX Runtime lacks a node's operator.

    It is asked with a model of the node alone, with inputs of a guessed type. Of some plugins, such
    as EfficientNMS_TRT, it knows the definition in ONNX's domain, but computes none of them.
    """
    inputs = []
    for name in dict.fromkeys(filter(None, node.input)):
        inputs.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([node], "operator", inputs, outputs)
    imports = [*model.opset_import, *list_missing_imports([node], model.opset_import)]
    single = onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_LEVEL
    register_libraries(options, libraries)
    try:
        ort.InferenceSession(single.SerializeToString(), options, providers=list(CPU))
    except Exception as error:  # noqa: BLE001 ONNX Runtime documents none
        if node.domain in DEFAULT_DOMAINS:
            return _TYPE_ERROR not in str(error)
        return _NOT_REGISTERED in str(error)
    return False


def find_unknown_node(
    model: ModelProto, outputs: Iterable[str], unknown: frozenset[OperatorId]
) -> NodeProto | None:
    """Return the last node of an unknown operator that some tensors need, None where none is."""
    for node in iterate_needed_nodes(model.graph, outputs):
        if (node.domain, node.op_type) in unknown:
            return node
    return None


def describe_node(node: NodeProto) -> str:
    """Return the words for a node in messages: its name or first output, and its operator."""
    name = node.name or f"of {node.output[0]!r}"
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"node {name} ({operator})"


class ComputedOutputs(msgspec.Struct, frozen=True):
    """The tensors to compute in place of a model's outputs where some of these cannot be."""

    #: The outputs that can be computed.
    outputs: tuple[str, ...]
    #: The last float tensors before nodes that cannot be computed, on the way to other outputs:
    #: each with the position of such a node and the slot that reads it, -1 for its bodies.
    last_tensors: dict[str, tuple[int, int]]
    #: The outputs that cannot be computed.
    missing: tuple[str, ...]
    #: The nodes of unknown operators in the main graph, as messages name them.
    nodes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All tensors to compute."""
        return [*self.outputs, *self.last_tensors]


def find_computed_outputs(index: GraphIndex, unknown: frozenset[OperatorId]) -> ComputedOutputs:
    """Return the outputs that ONNX Runtime can compute, and the tensors to compute for others."""
    blocked_nodes: list[Node] = []
    blocked: set[str] = set()
    titles: list[str] = []
    for node in index.nodes:
        plugin = _find_plugin(node, unknown)
        if plugin is not None:
            titles.append(describe_node(plugin))
        if plugin is not None or not blocked.isdisjoint(node.read_names):
            blocked_nodes.append(node)
            blocked.update(filter(None, node.outputs))
    outputs = tuple(name for name in index.outputs if name not in blocked)
    missing = tuple(name for name in index.outputs if name in blocked)
    last_tensors: dict[str, tuple[int, int]] = {}
    for node in _select_ancestors(blocked_nodes, missing):
        for name in node.read_names:
            if name not in blocked and name not in outputs and _is_comparable(index, name):
                slot = node.inputs.index(name) if name in node.inputs else -1
                last_tensors[name] = (node.position, slot)
    return ComputedOutputs(outputs, last_tensors, missing, tuple(titles))


def _select_ancestors(nodes: Iterable[Node], outputs: Iterable[str]) -> list[Node]:
    """Return those of some nodes in order that outputs depend on through these nodes."""
    needed = set(outputs)
    ancestors: list[Node] = []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.outputs):
            ancestors.insert(0, node)
            needed.update(node.read_names)
    return ancestors


def _find_plugin(node: Node, unknown: frozenset[OperatorId]) -> NodeProto | None:
    """Return the first node of an unknown operator in a node and its bodies."""
    for part in iterate_nodes([node.proto]):
        if (part.domain, part.op_type) in unknown:
            return part
    return None


def _is_comparable(index: GraphIndex, name: str) -> bool:
    """Whether a tensor is computed, and holds floats as far as its type is known."""
    if name in index.inputs or index.is_constant(name):
        return False
    return index.elem_type(name) in _FLOAT_TYPES
