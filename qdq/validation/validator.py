"""The proof: accuracy in ONNX Runtime, and what the TensorRT compiler made of what the rules promised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from qdq.data.feeds import DataLike, Feeds, open_feeds
from qdq.engines.engine import Engine
from qdq.engines.layer_file import read_layer_file
from qdq.engines.prediction.fusion_rules import FUSION_RULES
from qdq.engines.prediction.predictor import predict_engine
from qdq.engines.rtx_compiler import build_engine
from qdq.engines.tensorrt import is_gpu_present, run_tensorrt
from qdq.errors import LayerFileError, UsageError
from qdq.graph.bodies import all_nodes
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load, raise_source_opset
from qdq.graph.shape_profiles import require_shapes
from qdq.graph.source import ModelLike, Source
from qdq.quantized.model import QuantizedModel, require_same_graph
from qdq.runtime.session import Progress
from qdq.target import Target
from qdq.validation.accuracy import Accuracy, compare_outputs, output_errors
from qdq.validation.engine_report import EngineReport, FusionRuleUse, compare_engines


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
    index = GraphIndex(raise_source_opset(load(model), target_model.least_opset))
    require_same_graph(index, target_model)
    feeds = open_feeds(index, data, batch) if data is not None else None
    fixed = dict(shapes or {})
    require_shapes(index, fixed)
    if feeds is not None:
        fixed = {**{name: values.shape for name, values in feeds.first().items()}, **fixed}
    accuracy = (
        compare_outputs(index, GraphIndex(target_model.original), feeds, progress)
        if feeds is not None
        else None
    )
    engines = tuple(
        _engine_report(index, target_model, target, fixed, feeds, allow_fp16) for target in targets
    )
    engines += tuple(_file_report(target_model, Path(path)) for path in layers)
    return Validation(index.source.name, target_model.source.name, accuracy, engines)


def misses(validation: Validation, thresholds: Thresholds) -> tuple[str, ...]:
    """Return one sentence for each broken promise, refused build and threshold that is missed; nothing where all is well."""
    found = [f"{e.target}: {b}" for e in validation.engines for b in e.broken_promises]
    found += [e.remark for e in validation.engines if e.failure]
    for output in validation.accuracy.outputs if validation.accuracy else ():
        for name in ("snr_db", "cosine", "top1_agreement"):
            wanted, got = getattr(thresholds, name), getattr(output, name)
            if wanted is not None and got is not None and not got >= wanted:  # NaN misses
                found.append(
                    f"output {output.name!r}: {name} is {got:.4g}, wanted at least {wanted:g}"
                )
    return tuple(found)


def _engine_report(
    index: GraphIndex,
    quantized: QuantizedModel,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    feeds: Feeds | None,
    allow_fp16: bool,
) -> EngineReport:
    if target.backend == "trt" and is_gpu_present():
        return _measured_report(index, quantized, target, feeds)
    models = (
        _labelled_source(index),
        Source(quantized.source.path, quantized.labelled(), quantized.source.digest),
    )
    if target.backend == "trt":
        ours, theirs = (predict_engine(m, target, shapes, allow_fp16=allow_fp16) for m in models)
        return msgspec.structs.replace(
            compare_engines(quantized, ours, theirs, "predicted"),
            fusion_rules=tuple(_followed(theirs)),
        )
    ours, theirs = (build_engine(m, target, shapes) for m in models)
    return compare_engines(quantized, ours, theirs, "compiled")


def _followed(engine: Engine) -> Iterable[FusionRuleUse]:
    """Yield the rules that a predicted engine's layers follow, in the order of their first layer."""
    for name in dict.fromkeys(layer.fusion_rule for layer in engine.layers):
        following = [layer.kind for layer in engine.layers if layer.fusion_rule == name]
        rule = FUSION_RULES[name]
        yield FusionRuleUse(
            name, rule.description, rule.source, len(following), tuple(dict.fromkeys(following))
        )


def _file_report(quantized: QuantizedModel, path: Path) -> EngineReport:
    """Return the report on a real engine of the quantized model, whose layers a file lists."""
    engine = read_layer_file(path, Target("trt", 0), _names_in_engines(quantized))
    report = msgspec.structs.replace(
        compare_engines(quantized, engine, engine, "read"),
        target=path.name,
        float_kernels=0,
        float_bytes=0.0,
        float_reformats=0,
    )
    if report.layers and len(report.unmapped) == len(report.layers):
        raise LayerFileError(
            f"{path}: no layer names a weighted node of {quantized.source.name}; pass the model that the engine was built from"
        )
    return report


def _names_in_engines(quantized: QuantizedModel) -> dict[str, str]:
    """Map what an engine may call a node to its label: its name in the file, or ``node_of_`` its first output; bodies included."""
    given, labelled = all_nodes(quantized.source.model.graph), all_nodes(quantized.labelled().graph)
    both = [(ours, label) for (_, ours), (label, _) in zip(given, labelled, strict=True)]
    names = {f"node_of_{node.output[0]}": label for node, label in both if node.output}
    return {**names, **{node.name: label for node, label in both if node.name}}


def _measured_report(
    index: GraphIndex, quantized: QuantizedModel, target: Target, feeds: Feeds | None
) -> EngineReport:
    if feeds is None:
        raise UsageError(f"target {target}: running an engine needs --data")
    ours = run_tensorrt(_labelled_source(index), target, feeds)
    theirs = run_tensorrt(
        Source(quantized.source.path, quantized.labelled(), quantized.source.digest), target, feeds
    )
    report = compare_engines(quantized, ours.engine, theirs.engine, "measured")
    errors = output_errors(index, feeds, theirs.outputs)
    return msgspec.structs.replace(
        report,
        milliseconds=theirs.milliseconds,
        float_milliseconds=ours.milliseconds,
        outputs=errors,
    )


def _labelled_source(index: GraphIndex) -> Source:
    """Return the float model with every node named by its label."""
    copy = type(index.source.model)()
    copy.CopyFrom(index.source.model)
    labels = [node.label for scope in index.scopes.values() for node in scope.nodes]
    for (_, node), label in zip(list(all_nodes(copy.graph)), labels, strict=True):
        node.name = label
    return Source(index.source.path, copy, index.source.digest)
