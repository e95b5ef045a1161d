"""Which nodes of a float model make the noise of FP16 or BF16: each rounded alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from onnx import TensorProto

from qdq.calibration.methods import DEFAULT_METHOD
from qdq.data.feeds import DataLike
from qdq.data.sample_recorder import read_samples_again
from qdq.errors import UsageError
from qdq.graph.aliases import keeps_values
from qdq.graph.float_types import FloatType, parse_float_type
from qdq.graph.index import GraphIndex, Node
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.observers.collection import DEFAULT_OBSERVING
from qdq.pipeline.float_extremes import sample_extremes
from qdq.pipeline.quantize_request import to_calibration_options
from qdq.planning.planner import require_float_model
from qdq.precision.float_plan import FloatRequest, plan_float
from qdq.precision.node_rounding import round_nodes
from qdq.recovery.output_snr import OutputSnr
from qdq.rules.rule_files import RulesLike, choose_float_rules

#: The samples that the noise is measured with.
_SAMPLES = 8


class NodeNoise(msgspec.Struct, frozen=True):
    """The noise at the outputs with one node alone in the 16-bit type."""

    node: str
    operator: str
    #: The largest absolute value of its results; 0 where it is unknown.
    amax: float
    snr_db: float
    #: What keeps the node in FP32 when the model is cast; "" where it is cast.
    kept: str = ""


class FloatSensitivity(msgspec.Struct, frozen=True):
    """The nodes that make the noise of a 16-bit type, those of the lowest ratio first."""

    model: str
    #: ``fp16`` or ``bf16``.
    to: str
    samples: int
    #: The ratio with all nodes in the type, and with those that the rules do not keep, in dB.
    all_snr_db: float
    cast_snr_db: float
    nodes: tuple[NodeNoise, ...]
    #: The labels of the nodes of the main graph that the rules keep in FP32.
    kept: tuple[str, ...] = ()


def measure_float_sensitivity(
    model: ModelLike,
    data: DataLike,
    to: str = "fp16",
    *,
    rules: RulesLike | None = None,
    most: int = 20,
) -> FloatSensitivity:
    """Return the noise of at most `most` nodes of the main graph, each in the type alone.

    They are those whose largest values are farthest from 1, on a scale of powers of two. Raises
    the errors of the loader and of the data, and UsageError for unknown types.
    """
    float_type = parse_float_type(to)
    if not float_type.is_short:
        raise UsageError(f"to: {to!r} is the type that the model has. Pass fp16 or bf16.")
    source = load(model)
    require_float_model(source)
    index = GraphIndex(source)
    options = to_calibration_options(
        data, None, DEFAULT_METHOD, None, DEFAULT_OBSERVING, None, None
    )
    samples = read_samples_again(index, options.data or data, None, _SAMPLES)
    snr = OutputSnr(index, [sample.feed for sample in samples])
    extremes = sample_extremes(index, options)
    measurement = _Measurement(index, snr, float_type, extremes)
    request = FloatRequest(float_type, choose_float_rules(rules), amax=extremes)
    kept = {node.node: node.because for node in plan_float(index, request).kept}
    labels = {node.label for node in measurement.nodes}
    return FloatSensitivity(
        source.name,
        to,
        len(samples),
        measurement.measure(labels),
        measurement.measure(labels - kept.keys()),
        measurement.rank_nodes(most, kept),
        tuple(sorted(labels & kept.keys())),
    )


class _Measurement:
    """Measures the noise of the nodes of a model's main graph."""

    def __init__(
        self, index: GraphIndex, snr: OutputSnr, float_type: FloatType, extremes: dict[str, float]
    ) -> None:
        self._index = index
        self._snr = snr
        self._float_type = float_type
        self._extremes = extremes
        #: The nodes that compute floats at run time.
        self.nodes = [node for node in index.nodes if _computes_float(index, node)]

    def measure(self, labels: set[str]) -> float:
        """Return the ratio in dB with the nodes of some labels in the type."""
        return self._snr.measure(round_nodes(self._index, labels, self._float_type))

    def rank_nodes(self, most: int, kept: Mapping[str, str]) -> tuple[NodeNoise, ...]:
        """Return the noise of the most extreme nodes, each alone, the lowest ratio first."""
        noises: list[NodeNoise] = []
        for node in sorted(self.nodes, key=self._find_distance, reverse=True)[:most]:
            ratio = self.measure({node.label})
            reason = kept.get(node.label, "")
            noises.append(NodeNoise(node.label, node.op, self._find_amax(node), ratio, reason))
        return tuple(sorted(noises, key=lambda noise: noise.snr_db))

    def _find_distance(self, node: Node) -> float:
        """Return how far the largest value of a node is from 1, in powers of two."""
        amax = self._find_amax(node)
        return abs(math.log2(amax)) if amax > 0.0 else 0.0

    def _find_amax(self, node: Node) -> float:
        return max((self._extremes.get(name, 0.0) for name in node.outputs), default=0.0)


def _computes_float(index: GraphIndex, node: Node) -> bool:
    """Whether a node computes other float32 values than it reads, at run time."""
    if node.bodies or node.op == "Cast" or keeps_values(index, node):
        return False
    results = [name for name in node.outputs if name and not index.is_constant(name)]
    return any(index.elem_type(name) == TensorProto.FLOAT for name in results)
