"""The float and the quantized engine of a target, compared layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.prediction.fusion_rules import FUSION_RULES
from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.operands import operands
from qdq.graph.operators import RECURRENT
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.quantized_operators import DEQUANTIZE
from qdq.metrics.output_errors import OutputError
from qdq.quantized.model import QuantizedEdge, QuantizedModel
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT4, INT8

#: Kinds of engine layer that multiply matrices or convolve. Others are pointwise, or fuse whole
#: attention blocks.
_MULTIPLYING = (
    "correlation",
    "gemm",
    "deconv",
    "runtime_fusion",
    "CaskConvolution",
    "CaskGemmConvolution",
    "CudaDepthwiseConvolution",
    "MatrixMultiply",
)
_INT8_LABEL = ELEMENT_TYPES[INT8].label
_FP8_LABEL = ELEMENT_TYPES[E4M3].label
_INT4_LABEL = ELEMENT_TYPES[INT4].label

#: The compiler's names of the types that a layer multiplies, with their labels.
_PRECISIONS = {
    "Int8": _INT8_LABEL,
    "FP8": _FP8_LABEL,
    "Half": "FP16",
    "BFloat16": "BF16",
    "Float": "FP32",
}


class LayerVerdict(msgspec.Struct, frozen=True):
    """The types in which an engine runs one weighted node."""

    #: Label of the node.
    node: str
    #: Its operator.
    op: str
    #: Whether it multiplies INT8 operands.
    int8: bool
    #: Whether every operand has a pair, so that the plan promised INT8 or FP8, or the weight alone
    #: has one in INT4.
    promised: bool
    #: The rules that asked for its pairs, "" where none did.
    rule: str
    #: The engine layer that computes it: kind and types.
    engine: str
    #: Whether it multiplies FP8 operands.
    fp8: bool = False
    #: The type that the pairs promised: ``INT8``, ``FP8``, ``INT4``, or "" where an operand has no
    #: pair.
    expected_type: str = ""
    #: The documented rule that a predicted layer follows, "" for a real one.
    fusion_rule: str = ""
    #: Whether the engine keeps its weight in INT4.
    int4: bool = False
    #: The type that it multiplies, such as ``INT8`` or ``FP16``; ``INT4`` for a weight kept in it,
    #: ``float`` where the layer's kernel casts its operands itself, "" where no layer names the
    #: node.
    precision: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether it multiplies the type that the pairs promised."""
        if self.expected_type == _INT8_LABEL:
            return self.int8
        if self.expected_type == _INT4_LABEL:
            return self.int4
        return self.fp8 and self.expected_type == _FP8_LABEL


class BrokenPromise(msgspec.Struct, frozen=True):
    """A node that the plan put in INT8 or FP8 and the engine did not."""

    #: Label of the node.
    node: str
    #: The rules that requested its pairs.
    rule: str
    #: A clause about the layer that the engine runs instead, beginning with "but".
    actual: str
    #: The promised type: ``INT8`` or ``FP8``.
    expected_type: str = _INT8_LABEL

    def __str__(self) -> str:
        promise = f"the pairs promise {self.expected_type}"
        return f"{self.node} [{self.rule}]: {promise}, {self.actual}"


class FusionRuleUse(msgspec.Struct, frozen=True):
    """A documented rule, and how many layers of a predicted engine follow it."""

    #: Name of the fusion rule.
    rule: str
    #: The rule in a sentence.
    description: str
    #: Where it is documented.
    source: str
    #: Number of layers that follow it.
    layers: int
    #: The kinds of those layers.
    kinds: tuple[str, ...]


class EngineReport(msgspec.Struct, frozen=True):
    """The float and the quantized engine of one target, side by side."""

    #: The target, as `rtx:sm86`, or the name of a file of layers.
    target: str
    #: ``compiled`` without a GPU, ``measured`` on a GPU, ``predicted`` from documented rules, or
    #: ``read`` from a file of layers.
    kind: str
    #: Name and version of the compiler.
    compiler: str
    #: The compiler's message where it refused the model, else "".
    failure: str
    #: The compiler's message where it refused the float model, else empty.
    float_failure: str
    #: Kernels of the quantized engine.
    kernels: int
    #: Kernels of the float engine; 0 where none was built.
    float_kernels: int
    #: Bytes that all layers read and write in one inference.
    bytes: float
    #: The same for the float engine.
    float_bytes: float
    layers: tuple[LayerVerdict, ...]
    #: Q and DQ nodes that stayed separate kernels.
    standalone_qdq: tuple[str, ...]
    broken_promises: tuple[BrokenPromise, ...]
    #: Median time on the GPU; None where nothing ran.
    milliseconds: float | None = None
    #: The same for the float engine.
    float_milliseconds: float | None = None
    #: Errors of the INT8 engine's outputs against those of the float model in ONNX Runtime; empty
    #: where nothing ran.
    outputs: tuple[OutputError, ...] = ()
    #: Layers that only convert a tensor's type or memory format, including separate Q and DQ.
    reformats: int = 0
    #: The same for the float engine.
    float_reformats: int = 0
    #: Weighted nodes that no layer of a predicted or read engine names, such as those in bodies.
    #: Their promises are neither kept nor broken.
    unmapped: tuple[str, ...] = ()
    #: The documented rules that a predicted engine's layers follow; empty for a real one.
    fusion_rules: tuple[FusionRuleUse, ...] = ()

    @property
    def types(self) -> str:
        """The types that the weighted nodes were promised, such as ``INT8`` or ``FP8 and INT8``."""
        expected = {verdict.expected_type for verdict in self.layers if verdict.expected_type}
        return " and ".join(sorted(expected)) or _INT8_LABEL

    @property
    def remark(self) -> str:
        """A sentence for the user where a number alone would mislead, else ""."""
        is_predicted = self.kind == "predicted"
        if self.failure:
            models = "with or without Q/DQ" if self.float_failure else "only with Q/DQ"
            refuses = "TensorRT is predicted to refuse" if is_predicted else "the compiler refuses"
            return f"{self.target}: {refuses} this model {models}: {self.failure}"
        if self.bytes > self.float_bytes > 0:
            engine = f"{self.types} engine"
            if is_predicted:
                engine = f"predicted {engine}"
            megabytes = self.bytes / 1e6
            float_megabytes = self.float_bytes / 1e6
            return (
                f"{self.target}: the {engine} moves more bytes than the float engine "
                f"({megabytes:.2f} MB against {float_megabytes:.2f} MB)."
            )
        return ""


def compare_engines(
    quantized: QuantizedModel, float_engine: Engine, quantized_engine: Engine, kind: str
) -> EngineReport:
    """Return the comparison of the engines of the float and of the quantized model.

    `kind` is that of `EngineReport`.
    """
    verdicts: tuple[LayerVerdict, ...] = ()
    if not quantized_engine.failure:
        verdicts = tuple(_judge_layers(quantized, quantized_engine))
    unmapped: tuple[str, ...] = ()
    if kind in ("read", "predicted"):
        unmapped = _find_unmapped(verdicts, quantized_engine)
    broken_promises: list[BrokenPromise] = []
    for verdict in verdicts:
        if verdict.promised and not verdict.is_kept and verdict.node not in unmapped:
            broken_promises.append(_make_broken_promise(verdict, kind))
    return EngineReport(
        target=str(quantized_engine.target),
        kind=kind,
        compiler=quantized_engine.compiler,
        failure=quantized_engine.failure,
        float_failure=float_engine.failure,
        kernels=quantized_engine.kernels,
        float_kernels=float_engine.kernels,
        bytes=quantized_engine.bytes,
        float_bytes=float_engine.bytes,
        layers=verdicts,
        standalone_qdq=_find_standalone_pairs(quantized, quantized_engine),
        broken_promises=tuple(broken_promises),
        reformats=quantized_engine.reformats,
        float_reformats=float_engine.reformats,
        unmapped=unmapped,
    )


def _find_unmapped(verdicts: Iterable[LayerVerdict], engine: Engine) -> tuple[str, ...]:
    """Return the weighted nodes that no layer names."""
    named: set[str] = set()
    for layer in engine.layers:
        named.update(layer.nodes)
    return tuple(verdict.node for verdict in verdicts if verdict.node not in named)


def _find_standalone_pairs(quantized: QuantizedModel, engine: Engine) -> tuple[str, ...]:
    """Return the labels of the Q and DQ nodes in layers that hold no other node, sorted."""
    pair_nodes = set()
    for label, node in all_nodes(quantized.labelled().graph):
        if node.op_type in PAIR_OPERATORS:
            pair_nodes.add(label)
    standalone: set[str] = set()
    for layer in engine.layers:
        if pair_nodes.issuperset(layer.nodes):
            standalone.update(layer.nodes)
    return tuple(sorted(standalone))


def _make_broken_promise(verdict: LayerVerdict, kind: str) -> BrokenPromise:
    runs = "is predicted to run" if kind == "predicted" else "runs"
    actual = f"but the engine {runs} it as {verdict.engine}"
    if verdict.fusion_rule:
        description = FUSION_RULES[verdict.fusion_rule].description
        actual += f": {description}"
    return BrokenPromise(verdict.node, verdict.rule, actual, verdict.expected_type)


def is_int8_product(layer: EngineLayer) -> bool:
    """Whether a layer multiplies INT8 operands, without casting them to float first."""
    return layer.multiplies("Int8")


def _judge_layers(quantized: QuantizedModel, engine: Engine) -> Iterator[LayerVerdict]:
    """Yield a verdict for each weighted node of the float graph and its bodies."""
    computing_layers = _map_computing_layers(engine)
    pairs = {pair.edge: pair for pair in quantized.edges}
    dequantizers: dict[str, str] = {}
    for label, proto in all_nodes(quantized.labelled().graph):
        if proto.op_type == DEQUANTIZE:
            dequantizers[proto.output[0]] = label
    for scope in quantized.index.scopes.values():
        for node in scope.nodes:
            operand_edges = operands(scope, node)
            if not operand_edges:
                continue
            label = qualified_name(scope.path, node.label)
            layer = computing_layers.get(label)
            weight_pair = pairs.get(operand_edges[1])
            if node.op in RECURRENT and weight_pair is not None:
                # The engine's loop has no name, but its product carries the weight's pair.
                dequantizer = dequantizers.get(weight_pair.pair.output, "")
                layer = computing_layers.get(dequantizer, layer)
            operand_pairs = [pairs.get(edge) for edge in operand_edges]
            yield _judge_node(label, node.op, operand_pairs, layer)


def _map_computing_layers(engine: Engine) -> dict[str, EngineLayer]:
    """Return for each node that a layer names the layer that multiplies its operands.

    For a node without such a layer it is the first that names it.
    """
    first_layers: dict[str, EngineLayer] = {}
    multiplying_layers: dict[str, EngineLayer] = {}
    for layer in engine.layers:
        for node in layer.nodes:
            first_layers.setdefault(node, layer)
            if layer.kind in _MULTIPLYING:
                multiplying_layers.setdefault(node, layer)
    return first_layers | multiplying_layers


def _judge_node(
    label: str, op: str, operand_pairs: list[QuantizedEdge | None], layer: EngineLayer | None
) -> LayerVerdict:
    """Return the verdict on a weighted node.

    `operand_pairs` holds None for an operand without a pair, and `layer` is the one that computes
    the node.
    """
    present_pairs = [pair for pair in operand_pairs if pair is not None]
    is_promised = len(present_pairs) == len(operand_pairs)
    expected_type = ""
    weight_pair = operand_pairs[1]
    if weight_pair is not None and weight_pair.dtype == INT4:
        is_promised, expected_type = True, _INT4_LABEL
    elif is_promised:
        is_fp8 = all(pair.dtype == E4M3 for pair in present_pairs)
        expected_type = _FP8_LABEL if is_fp8 else _INT8_LABEL
    rules = dict.fromkeys(pair.pair.rules for pair in present_pairs if pair.pair.rules)
    return LayerVerdict(
        node=label,
        op=op,
        int8=layer is not None and is_int8_product(layer),
        promised=is_promised,
        rule=", ".join(rules),
        engine=str(layer) if layer else "nothing: no layer names it",
        fp8=layer is not None and layer.multiplies("FP8"),
        expected_type=expected_type,
        fusion_rule=layer.fusion_rule if layer else "",
        int4=layer is not None and layer.reads_constant("Int4"),
        precision=_find_precision(layer) if layer else "",
    )


def _find_precision(layer: EngineLayer) -> str:
    """Return the type that a layer multiplies, as a `LayerVerdict` names it."""
    if layer.reads_constant("Int4"):
        return _INT4_LABEL
    for dtype, label in _PRECISIONS.items():
        if layer.multiplies(dtype):
            return label
    return "float"
