"""The proof: accuracy in ONNX Runtime, and what the TensorRT compiler made of what the rules promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from qdq.accuracy import Accuracy, OutputError, compare, output_errors
from qdq.documented import RULES
from qdq.engine import Engine, EngineLayer, build_engine
from qdq.errors import LayerFileError, UsageError
from qdq.feeds import DataLike, Feeds, open_feeds
from qdq.gpu import gpu_present, run_tensorrt
from qdq.index import GraphIndex, every_node, qualified
from qdq.layerfile import read_layer_file
from qdq.loading import ModelLike, Source, load, raise_source
from qdq.observation import Progress
from qdq.operands import RECURRENT, operands
from qdq.pairs import PAIR_OPERATORS
from qdq.predicting import predict_engine
from qdq.profiles import require_shapes
from qdq.qoperators import DEQUANTIZE
from qdq.quantized import QuantizedModel, require_same_graph
from qdq.quantizer import E4M3, ELEMENT_TYPES, INT8
from qdq.target import Target

#: Kinds of engine layer that multiply matrices or convolve; others are pointwise, or fuse whole attention blocks.
_MULTIPLYING = ("correlation", "gemm", "deconv", "runtime_fusion", "CaskConvolution", "CaskGemmConvolution", "CudaDepthwiseConvolution", "MatrixMultiply")
INT8_SAYS, FP8_SAYS = ELEMENT_TYPES[INT8].says, ELEMENT_TYPES[E4M3].says


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
    wanted: str = ""
    #: The documented rule that a predicted layer follows, "" for a real one.
    follows: str = ""

    @property
    def kept(self) -> bool:
        """Whether it multiplies the type that the pairs promised."""
        return {INT8_SAYS: self.int8, FP8_SAYS: self.fp8}.get(self.wanted, False)


class BrokenPromise(msgspec.Struct, frozen=True):
    """A node that the plan put in INT8 or FP8 and the engine did not."""

    node: str
    rule: str
    #: What the engine did instead.
    instead: str
    #: What was promised: ``INT8`` or ``FP8``.
    wanted: str = INT8_SAYS

    def __str__(self) -> str:
        return f"{self.node} [{self.rule}]: promised {self.wanted}, {self.instead}"


class FollowedRule(msgspec.Struct, frozen=True):
    """A documented rule, and how many layers of a predicted engine follow it."""

    rule: str
    says: str
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
    standalone: tuple[str, ...]
    broken: tuple[BrokenPromise, ...]
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
    rules: tuple[FollowedRule, ...] = ()

    @property
    def types(self) -> str:
        """The types that the weighted nodes were promised, such as ``INT8`` or ``FP8 and INT8``."""
        return " and ".join(sorted({v.wanted for v in self.layers if v.wanted})) or INT8_SAYS

    @property
    def remark(self) -> str:
        """A sentence for the user where a number alone would mislead, else ""."""
        if self.failure:
            same = "with or without Q/DQ" if self.float_failure else "only with Q/DQ"
            who = "TensorRT is predicted to refuse" if self.kind == "predicted" else "the compiler refuses"
            return f"{self.target}: {who} this model {same}: {self.failure}"
        if self.bytes > self.float_bytes > 0:
            word = f"predicted {self.types} engine" if self.kind == "predicted" else f"{self.types} engine"
            return f"{self.target}: the {word} moves more bytes than the float engine ({self.bytes / 1e6:.2f} MB against {self.float_bytes / 1e6:.2f} MB)."
        return ""


class Validation(msgspec.Struct, frozen=True):
    """Accuracy over some data, and one report for each target."""

    model: str
    quantized: str
    accuracy: Accuracy | None
    engines: tuple[EngineReport, ...]


class Thresholds(msgspec.Struct, frozen=True):
    """What the user wants every output to reach; None for what does not matter."""

    snr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None


def validate(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    quantized: ModelLike,
    *,
    data: DataLike | None = None,
    targets: Iterable[Target] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    layers: Iterable[str | Path] = (),
    allow_fp16: bool = False,
) -> Validation:
    """Return how the quantized model compares with the float model it was made from.

    Accuracy needs `data`; engines need `targets`: rtx targets are compiled, trt targets built and
    run where TensorRT and a GPU are present, which needs `data`, and predicted elsewhere.
    `allow_fp16` predicts what TensorRT 10 and earlier build with FP16 allowed. `layers` are files
    that the engine inspector or ``trtexec --exportLayerInfo`` wrote for engines of the quantized
    model. Dynamic dimensions are fixed by `shapes`, else by the first sample, else at 1. Raises
    ModelError where the two models are not the same graph.
    """
    target_model = QuantizedModel(quantized)
    index = GraphIndex(raise_source(load(model), target_model.least_opset))
    require_same_graph(index, target_model)
    feeds = open_feeds(index, data, batch) if data is not None else None
    fixed = dict(shapes or {})
    require_shapes(index, fixed)
    if feeds is not None:
        fixed = {**{name: values.shape for name, values in feeds.first().items()}, **fixed}
    accuracy = compare(index, GraphIndex(target_model.given), feeds, progress) if feeds is not None else None
    engines = tuple(_engine_report(index, target_model, target, fixed, feeds, allow_fp16) for target in targets)
    engines += tuple(_file_report(target_model, Path(path)) for path in layers)
    return Validation(index.source.name, target_model.source.name, accuracy, engines)


def misses(validation: Validation, thresholds: Thresholds) -> tuple[str, ...]:
    """Return one sentence for each broken promise, refused build and threshold that is missed; nothing where all is well."""
    found = [f"{e.target}: {b}" for e in validation.engines for b in e.broken]
    found += [e.remark for e in validation.engines if e.failure]
    for output in validation.accuracy.outputs if validation.accuracy else ():
        for name in ("snr_db", "cosine", "top1_agreement"):
            wanted, got = getattr(thresholds, name), getattr(output, name)
            if wanted is not None and got is not None and not got >= wanted:  # NaN misses
                found.append(f"output {output.name!r}: {name} is {got:.4g}, wanted at least {wanted:g}")
    return tuple(found)


def _engine_report(
    index: GraphIndex, quantized: QuantizedModel, target: Target, shapes: dict[str, tuple[int, ...]], feeds: Feeds | None, allow_fp16: bool
) -> EngineReport:
    if target.backend == "trt" and gpu_present():
        return _measured_report(index, quantized, target, feeds)
    models = (_labelled_source(index), Source(quantized.source.path, quantized.labelled(), quantized.source.digest))
    if target.backend == "trt":
        ours, theirs = (predict_engine(m, target, shapes, allow_fp16=allow_fp16) for m in models)
        return msgspec.structs.replace(report_engines(quantized, ours, theirs, "predicted"), rules=tuple(_followed(theirs)))
    ours, theirs = (build_engine(m, target, shapes) for m in models)
    return report_engines(quantized, ours, theirs, "compiled")


def _followed(engine: Engine) -> Iterable[FollowedRule]:
    """Yield the rules that a predicted engine's layers follow, in the order of their first layer."""
    for name in dict.fromkeys(layer.follows for layer in engine.layers):
        following = [layer.kind for layer in engine.layers if layer.follows == name]
        rule = RULES[name]
        yield FollowedRule(name, rule.says, rule.source, len(following), tuple(dict.fromkeys(following)))


def _file_report(quantized: QuantizedModel, path: Path) -> EngineReport:
    """Return the report on a real engine of the quantized model, whose layers a file lists."""
    engine = read_layer_file(path, Target("trt", 0), _names_in_engines(quantized))
    report = msgspec.structs.replace(report_engines(quantized, engine, engine, "read"), target=path.name, float_kernels=0, float_bytes=0.0, float_reformats=0)
    if report.layers and len(report.unmapped) == len(report.layers):
        raise LayerFileError(f"{path}: no layer names a weighted node of {quantized.source.name}; pass the model that the engine was built from")
    return report


def _names_in_engines(quantized: QuantizedModel) -> dict[str, str]:
    """Map what an engine may call a node to its label: its name in the file, or ``node_of_`` its first output; bodies included."""
    given, labelled = every_node(quantized.source.model.graph), every_node(quantized.labelled().graph)
    both = [(ours, label) for (_, ours), (label, _) in zip(given, labelled, strict=True)]
    names = {f"node_of_{node.output[0]}": label for node, label in both if node.output}
    return {**names, **{node.name: label for node, label in both if node.name}}


def _measured_report(index: GraphIndex, quantized: QuantizedModel, target: Target, feeds: Feeds | None) -> EngineReport:
    if feeds is None:
        raise UsageError(f"target {target}: running an engine needs --data")
    ours = run_tensorrt(_labelled_source(index), target, feeds)
    theirs = run_tensorrt(Source(quantized.source.path, quantized.labelled(), quantized.source.digest), target, feeds)
    report = report_engines(quantized, ours.engine, theirs.engine, "measured")
    errors = output_errors(index, feeds, theirs.outputs)
    return msgspec.structs.replace(report, milliseconds=theirs.milliseconds, float_milliseconds=ours.milliseconds, outputs=errors)


def report_engines(quantized: QuantizedModel, ours: Engine, theirs: Engine, kind: str) -> EngineReport:
    """Return the comparison of the float engine (`ours`) with the quantized one (`theirs`)."""
    layers = tuple(_verdicts(quantized, theirs)) if not theirs.failure else ()
    named = {node for layer in theirs.layers for node in layer.nodes}
    unmapped = tuple(v.node for v in layers if kind in ("read", "predicted") and v.node not in named)
    pair_nodes = {label for label, n in every_node(quantized.labelled().graph) if n.op_type in PAIR_OPERATORS}
    alone = {n for layer in theirs.layers if layer.nodes and pair_nodes.issuperset(layer.nodes) for n in layer.nodes}
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
        standalone=tuple(sorted(alone)),
        broken=tuple(_broken(v, kind) for v in layers if v.promised and not v.kept and v.node not in unmapped),
        reformats=theirs.reformats,
        float_reformats=ours.reformats,
        unmapped=unmapped,
    )


def _broken(verdict: LayerVerdict, kind: str) -> BrokenPromise:
    runs = "is predicted to run" if kind == "predicted" else "runs"
    why = f": {RULES[verdict.follows].says}" if verdict.follows else ""
    return BrokenPromise(verdict.node, verdict.rule, f"but the engine {runs} it as {verdict.engine}{why}", verdict.wanted)


def _computing_layers(engine: Engine) -> dict[str, EngineLayer]:
    """Return for each node that a layer names the layer that multiplies its operands, else the first."""
    multiplying = {node: layer for layer in reversed(engine.layers) if layer.kind in _MULTIPLYING for node in layer.nodes}
    return {node: layer for layer in reversed(engine.layers) for node in layer.nodes} | multiplying


def multiplies_int8(layer: EngineLayer) -> bool:
    """Whether a layer multiplies INT8 operands, without casting them to float first."""
    return layer.multiplies("Int8")


def _verdicts(quantized: QuantizedModel, engine: Engine) -> Iterable[LayerVerdict]:
    computing = _computing_layers(engine)
    pairs = {q.edge: q.pair for q in quantized.edges}
    types = {q.edge: q.dtype for q in quantized.edges}
    dequantizers = {n.output[0]: label for label, n in every_node(quantized.labelled().graph) if n.op_type == DEQUANTIZE}
    for scope, node in ((s, n) for s in quantized.index.scopes.values() for n in s.nodes):
        both = operands(scope, node)
        if not both:
            continue
        label = qualified(scope.path, node.label)
        layer = computing.get(label)
        if node.op in RECURRENT and both[1] in pairs:  # the loop it becomes has no name: its product carries the weight's pair
            layer = computing.get(dequantizers.get(pairs[both[1]].output, ""), layer)
        rules = ", ".join(dict.fromkeys(pairs[e].rules for e in both if e in pairs and pairs[e].rules))
        yield LayerVerdict(
            node=label,
            op=node.op,
            int8=layer is not None and multiplies_int8(layer),
            promised=all(e in pairs for e in both),
            rule=rules,
            engine=str(layer) if layer else "nothing: no layer names it",
            fp8=layer is not None and layer.multiplies("FP8"),
            wanted="" if not all(e in pairs for e in both) else FP8_SAYS if all(types[e] == E4M3 for e in both) else INT8_SAYS,
            follows=layer.follows if layer else "",
        )


def _labelled_source(index: GraphIndex) -> Source:
    """Return the float model with every node named by its label."""
    copy = type(index.source.model)()
    copy.CopyFrom(index.source.model)
    labels = [node.label for scope in index.scopes.values() for node in scope.nodes]
    for (_, node), label in zip(list(every_node(copy.graph)), labels, strict=True):
        node.name = label
    return Source(index.source.path, copy, index.source.digest)
