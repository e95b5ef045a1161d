"""The tensors that accuracy compares: the outputs, or the last tensors before plugins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from qdq.errors import ModelError
from qdq.graph.index import GraphIndex
from qdq.optional_packages import onnxruntime as ort
from qdq.runtime.session import exact_options, open_partial_session, open_session
from qdq.runtime.unknown_operators import (
    ComputedOutputs,
    find_computed_outputs,
    find_unknown_operators,
)


class MissingOutputs(msgspec.Struct, frozen=True):
    """Outputs that ONNX Runtime cannot compute, because it lacks the operators of some nodes."""

    #: Names of the outputs.
    outputs: tuple[str, ...]
    #: The nodes that ONNX Runtime lacks an operator for, with their operators.
    nodes: tuple[str, ...]
    #: The tensors that are compared instead: the last ones before such nodes, on the way to the
    #: outputs.
    compared: tuple[str, ...]


class ComparedTensors(msgspec.Struct, frozen=True):
    """What is compared, by its names in the float and in the quantized model."""

    #: The name in the quantized model by the one in the float model.
    names: dict[str, str]
    #: None where all outputs can be computed.
    missing: MissingOutputs | None
    #: Whether the models hold operators that ONNX Runtime lacks.
    is_partial: bool
    libraries: tuple[Path, ...]

    def open_float_session(self, index: GraphIndex) -> ort.InferenceSession:
        """Return a session of the float model that returns the tensors."""
        return self._open_session(index, list(self.names))

    def open_quantized_session(self, index: GraphIndex) -> ort.InferenceSession:
        """Return a session of the quantized model that returns the tensors."""
        return self._open_session(index, list(dict.fromkeys(self.names.values())))

    def _open_session(self, index: GraphIndex, names: list[str]) -> ort.InferenceSession:
        options = exact_options()
        if self.is_partial:
            return open_partial_session(index, names, options, libraries=self.libraries)
        return open_session(index, [], options, libraries=self.libraries)


def select_compared_tensors(
    float_index: GraphIndex, quantized_index: GraphIndex, libraries: Sequence[Path]
) -> ComparedTensors:
    """Return the tensors of two models to compare in ONNX Runtime.

    Raises ModelError where it can compute neither an output nor a tensor on the way to one.
    """
    unknown = find_unknown_operators(float_index.source.model, libraries)
    computed = find_computed_outputs(float_index, unknown)
    names = {name: name for name in computed.outputs}
    for name in computed.last_tensors:
        names[name] = _find_quantized_name(name, computed, float_index, quantized_index)
    if not computed.missing:
        return ComparedTensors(names, None, bool(unknown), tuple(libraries))
    if not names:
        raise ModelError(
            f"{float_index.source.name}: every output depends on {', '.join(computed.nodes)}, "
            "whose operator ONNX Runtime lacks, so there is no accuracy. "
            "Pass its library to --ort-library, or no data."
        )
    compared = tuple(computed.last_tensors)
    missing = MissingOutputs(computed.missing, computed.nodes, compared)
    return ComparedTensors(names, missing, True, tuple(libraries))


def _find_quantized_name(
    name: str, computed: ComputedOutputs, float_index: GraphIndex, quantized_index: GraphIndex
) -> str:
    """Return the name of a tensor as a node reads it in the quantized model, maybe from a pair."""
    position, slot = computed.last_tensors[name]
    reader = float_index.nodes[position]
    for output in filter(None, reader.outputs):
        counterpart = quantized_index.producers.get(output)
        if counterpart is not None and counterpart.op == reader.op and slot >= 0:
            quantized_name: str = counterpart.inputs[slot]
            return quantized_name
    return name
