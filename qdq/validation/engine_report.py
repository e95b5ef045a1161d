"""The float and the quantized engine of a target, compared layer by layer."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from qdq.engines.engine import Engine, EngineLayer
from qdq.engines.prediction.fusion_rules import FUSION_RULES
from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.operands import operands
from qdq.graph.operators import RECURRENT
from qdq.graph.pairs import PAIR_OPERATORS
from qdq.graph.quantized_operators import DEQUANTIZE
from qdq.quantized.model import QuantizedModel
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8
from qdq.validation.accuracy import OutputError

#: Kinds of engine layer that multiply matrices or convolve; others are pointwise, or fuse whole attention blocks.
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
INT8_SAYS, FP8_SAYS = ELEMENT_TYPES[INT8].label, ELEMENT_TYPES[E4M3].label


class LayerVerdict(msgspec.Struct, frozen=True):
    """What the engine made of one weighted node."""

    node: str
    op: str
    #: Whether it multiplies INT8 operands.
    int8: bool
    #: Whether every operand stands behind a pair, so that the plan promised INT8.
    promised: bool
    #: The rules that asked for its pairs, "" where none did.
    rule: str
    #: The engine layer that computes it: kind and types.
    engine: str
    #: Whether it multiplies FP8 operands.
    fp8: bool = False
    #: What the pairs promised: ``INT8``, ``FP8``, or "" where an operand has no pair.
    expected_type: str = ""
    #: The documented rule that a predicted layer follows, "" for a real one.
    fusion_rule: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether it multiplies the type that the pairs promised."""
        return {INT8_SAYS: self.int8, FP8_SAYS: self.fp8}.get(self.expected_type, False)


class BrokenPromise(msgspec.Struct, frozen=True):
    """A node that the plan put in INT8 or FP8 and the engine did not."""

    node: str
    rule: str
    #: What the engine did instead.
    actual: str
    #: What was promised: ``INT8`` or ``FP8``.
    expected_type: str = INT8_SAYS

    def __str__(self) -> str:
        return f"{self.node} [{self.rule}]: promised {self.expected_type}, {self.actual}"


class FusionRuleUse(msgspec.Struct, frozen=True):
    """A documented rule, and how many layers of a predicted engine follow it."""

    rule: str
    description: str
    #: Where it is documented.
    source: str
    layers: int
    #: What those layers are.
    kinds: tuple[str, ...]


class EngineReport(msgspec.Struct, frozen=True):
    """The float and the quantized engine of one target, side by side."""

    target: str
    #: ``compiled`` with no GPU, ``measured`` on one, ``predicted`` from documented rules, or ``read`` from a file of layers.
    kind: str
    compiler: str
    #: The compiler's words where it refused the model, else "".
    failure: str
    float_failure: str
    kernels: int
    float_kernels: int
    #: Bytes that all layers read and write in one inference.
    bytes: float
    float_bytes: float
    layers: tuple[LayerVerdict, ...]
    #: Q and DQ nodes that stayed kernels of their own.
    standalone_qdq: tuple[str, ...]
    broken_promises: tuple[BrokenPromise, ...]
    #: Median time on the GPU; None where nothing ran.
    milliseconds: float | None = None
    float_milliseconds: float | None = None
    #: Errors of the INT8 engine's own outputs against the float model's in ONNX Runtime; empty where nothing ran.
    outputs: tuple[OutputError, ...] = ()
    #: Layers that only convert a tensor's type or memory format, stand-alone Q and DQ among them.
    reformats: int = 0
    float_reformats: int = 0
    #: Weighted nodes that no layer of a predicted or read engine names, such as those in bodies; neither kept nor broken.
    unmapped: tuple[str, ...] = ()
    #: What a predicted engine's layers follow; empty for a real one.
    fusion_rules: tuple[FusionRuleUse, ...] = ()

    @property
    def types(self) -> str:
        """The types that the weighted nodes were promised, such as ``INT8`` or ``FP8 and INT8``."""
        return (
            " and ".join(sorted({v.expected_type for v in self.layers if v.expected_type}))
            or INT8_SAYS
        )

    @property
    def remark(self) -> str:
        """A sentence for the user where a number alone would mislead, else ""."""
        if self.failure:
            same = "with or without Q/DQ" if self.float_failure else "only with Q/DQ"
            who = (
                "TensorRT is predicted to refuse"
                if self.kind == "predicted"
                else "the compiler refuses"
            )
            return f"{self.target}: {who} this model {same}: {self.failure}"
        if self.bytes > self.float_bytes > 0:
            word = (
                f"predicted {self.types} engine"
                if self.kind == "predicted"
                else f"{self.types} engine"
            )
            return f"{self.target}: the {word} moves more bytes than the float engine ({self.bytes / 1e6:.2f} MB against {self.float_bytes / 1e6:.2f} MB)."
        return ""


def compare_engines(
    quantized: QuantizedModel, ours: Engine, theirs: Engine, kind: str
) -> EngineReport:
    """Return the comparison of the float engine (`ours`) with the quantized one (`theirs`)."""
    layers = tuple(_verdicts(quantized, theirs)) if not theirs.failure else ()
    named = {node for layer in theirs.layers for node in layer.nodes}
    unmapped = tuple(
        v.node for v in layers if kind in ("read", "predicted") and v.node not in named
    )
    pair_nodes = {
        label for label, n in all_nodes(quantized.labelled().graph) if n.op_type in PAIR_OPERATORS
    }
    alone = {
        n
        for layer in theirs.layers
        if layer.nodes and pair_nodes.issuperset(layer.nodes)
        for n in layer.nodes
    }
    return EngineReport(
        target=str(theirs.target),
        kind=kind,
        compiler=theirs.compiler,
        failure=theirs.failure,
        float_failure=ours.failure,
        kernels=theirs.kernels,
        float_kernels=ours.kernels,
        bytes=theirs.bytes,
        float_bytes=ours.bytes,
        layers=layers,
        standalone_qdq=tuple(sorted(alone)),
        broken_promises=tuple(
            _broken(v, kind)
            for v in layers
            if v.promised and not v.is_kept and v.node not in unmapped
        ),
        reformats=theirs.reformats,
        float_reformats=ours.reformats,
        unmapped=unmapped,
    )


def _broken(verdict: LayerVerdict, kind: str) -> BrokenPromise:
    runs = "is predicted to run" if kind == "predicted" else "runs"
    why = f": {FUSION_RULES[verdict.fusion_rule].description}" if verdict.fusion_rule else ""
    return BrokenPromise(
        verdict.node,
        verdict.rule,
        f"but the engine {runs} it as {verdict.engine}{why}",
        verdict.expected_type,
    )


def _computing_layers(engine: Engine) -> dict[str, EngineLayer]:
    """Return for each node that a layer names the layer that multiplies its operands, else the first."""
    multiplying = {
        node: layer
        for layer in reversed(engine.layers)
        if layer.kind in _MULTIPLYING
        for node in layer.nodes
    }
    return {node: layer for layer in reversed(engine.layers) for node in layer.nodes} | multiplying


def is_int8_product(layer: EngineLayer) -> bool:
    """Whether a layer multiplies INT8 operands, without casting them to float first."""
    return layer.multiplies("Int8")


def _verdicts(quantized: QuantizedModel, engine: Engine) -> Iterable[LayerVerdict]:
    computing = _computing_layers(engine)
    pairs = {q.edge: q.pair for q in quantized.edges}
    types = {q.edge: q.dtype for q in quantized.edges}
    dequantizers = {
        n.output[0]: label
        for label, n in all_nodes(quantized.labelled().graph)
        if n.op_type == DEQUANTIZE
    }
    for scope, node in ((s, n) for s in quantized.index.scopes.values() for n in s.nodes):
        both = operands(scope, node)
        if not both:
            continue
        label = qualified_name(scope.path, node.label)
        layer = computing.get(label)
        if (
            node.op in RECURRENT and both[1] in pairs
        ):  # the loop it becomes has no name: its product carries the weight's pair
            layer = computing.get(dequantizers.get(pairs[both[1]].output, ""), layer)
        rules = ", ".join(
            dict.fromkeys(pairs[e].rules for e in both if e in pairs and pairs[e].rules)
        )
        yield LayerVerdict(
            node=label,
            op=node.op,
            int8=layer is not None and is_int8_product(layer),
            promised=all(e in pairs for e in both),
            rule=rules,
            engine=str(layer) if layer else "nothing: no layer names it",
            fp8=layer is not None and layer.multiplies("FP8"),
            expected_type=""
            if not all(e in pairs for e in both)
            else FP8_SAYS
            if all(types[e] == E4M3 for e in both)
            else INT8_SAYS,
            fusion_rule=layer.fusion_rule if layer else "",
        )
