"""Validation of a quantized model: its accuracy in ONNX Runtime and the types in its engines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import msgspec

from qdq.arguments import list_items, require_callable, require_type, to_count, to_path
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
from qdq.metrics.metric import Metric, MetricScores
from qdq.metrics.metric_files import MetricLike, to_metric
from qdq.metrics.output_errors import OutputError
from qdq.metrics.score_drop import to_drop
from qdq.quantized.model import QuantizedModel, require_same_graph
from qdq.runtime.session import Progress
from qdq.target import Target, TargetsLike, to_targets
from qdq.validation.accuracy import Accuracy, compare_outputs, output_errors
from qdq.validation.engine_report import EngineReport, FusionRuleUse, compare_engines

#: The figures of an output that have a threshold.
_FIGURES = ("snr_db", "cosine", "top1_agreement")


class Validation(msgspec.Struct, frozen=True):
    """Accuracy over some data, and one report for each target."""

    #: Name of the float model.
    model: str
    #: Name of the quantized model.
    quantized: str
    accuracy: Accuracy | None
    engines: tuple[EngineReport, ...]


class Thresholds(msgspec.Struct, frozen=True):
    """The least figures that every output must reach; None for no requirement."""

    snr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None
    #: The least score by the metric.
    metric: float | None = None
    #: The most that the score may be below the float model's: an amount, or a share as "0.5%".
    max_drop: float | str | None = None

    def __post_init__(self) -> None:
        for name in (*_FIGURES, "metric"):
            least = getattr(self, name)
            if least is not None:
                require_type(least, Real, f"Thresholds.{name}", "a number, or None")
        if self.max_drop is not None:
            to_drop(self.max_drop, "Thresholds.max_drop")


def validate(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    quantized: ModelLike,
    *,
    data: DataLike | None = None,
    targets: TargetsLike = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
    layers: str | Path | Iterable[str | Path] = (),
    allow_fp16: bool = False,
    ort_libraries: Iterable[str | Path] = (),
    metric: MetricLike | None = None,
) -> Validation:
    """Return the comparison of a quantized model with the float model it was made from.

    Accuracy needs `data`; engines need `targets`: rtx targets are compiled, trt targets built and
    run where TensorRT and a GPU are present, which needs `data`, and predicted elsewhere.
    `allow_fp16` predicts what TensorRT 10 and earlier build with FP16 allowed. `layers` are files
    of the layers of engines of the quantized model, from the engine inspector or ``trtexec
    --exportLayerInfo``. `ort_libraries` hold custom operators for ONNX Runtime. `metric` scores
    both models: "top1", "snr", "FILE.py:FUNCTION", or a function. Dynamic dimensions are fixed by
    `shapes`, else by the first sample, else at 1. Raises ModelError where the two models are not
    the same graph.
    """
    require_callable(progress, "progress")
    loaded_metric = to_metric(metric) if metric is not None else None
    quantized_model, index = _load_models(model, quantized)
    feeds = open_feeds(index, data, batch) if data is not None else None
    fixed_shapes = fix_shapes(index, _to_shapes(shapes), feeds)
    libraries = tuple(map(Path, ort_libraries))
    pair = _ModelPair(index, quantized_model, feeds, libraries, fixed_shapes, allow_fp16)
    accuracy = pair.measure_accuracy(progress, loaded_metric)
    reports = [pair.report(target) for target in to_targets(targets)]
    reports += _report_layer_files(quantized_model, layers)
    names = index.source.name, quantized_model.source.name
    return Validation(*names, accuracy=accuracy, engines=tuple(reports))


@dataclass(frozen=True)
class _ModelPair:
    """The float and the quantized model, and what their engines are built with."""

    index: GraphIndex
    quantized: QuantizedModel
    feeds: Feeds | None
    libraries: tuple[Path, ...]
    #: Shapes of inputs, by name.
    shapes: dict[str, tuple[int, ...]]
    allow_fp16: bool

    def measure_accuracy(self, progress: Progress | None, metric: Metric | None) -> Accuracy | None:
        """Return the accuracy over the samples, None without samples."""
        if self.feeds is None:
            return None
        original = GraphIndex(self.quantized.original)
        return compare_outputs(self.index, original, self.feeds, progress, self.libraries, metric)

    def report(self, target: Target) -> EngineReport:
        """Return the report on the engines of a target."""
        if target.backend == "trt" and is_gpu_present():
            return _report_measurement(
                self.index, self.quantized, target, self.feeds, self.libraries
            )
        return _report_target(self.index, self.quantized, target, self.shapes, self.allow_fp16)


def _report_layer_files(
    quantized_model: QuantizedModel, layers: str | Path | Iterable[str | Path]
) -> Iterator[EngineReport]:
    """Yield the reports on the engines whose layers are in files."""
    for path in list_items(layers, (str, Path), "layers", "paths of layer files"):
        yield _report_layer_file(quantized_model, to_path(path, "layers"))


def _load_models(model: ModelLike, quantized: ModelLike) -> tuple[QuantizedModel, GraphIndex]:
    """Return the quantized model, and the index of the float model at the same opset."""
    quantized_model = QuantizedModel(quantized)
    index = GraphIndex(raise_source_opset(load(model), quantized_model.least_opset))
    require_same_graph(index, quantized_model)
    return quantized_model, index


def _to_shapes(shapes: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]]:
    """Return shapes by input; raises UsageError for others than whole numbers above 0."""
    if shapes is None:
        return {}
    advice = "a mapping of inputs to sizes, such as {'image': (1, 3, 224, 224)}"
    require_type(shapes, Mapping, "shapes", advice)
    by_input: dict[str, tuple[int, ...]] = {}
    for name, sizes in shapes.items():
        require_type(sizes, (list, tuple), f"shapes of {name!r}", advice)
        by_input[name] = tuple(to_count(size, 1, f"shapes of {name!r}") for size in sizes)
    return by_input


def fix_shapes(
    index: GraphIndex, shapes: dict[str, tuple[int, ...]], feeds: Feeds | None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of inputs: the requested ones, else those of the first sample.

    Raises UsageError for a requested shape that does not fit the model.
    """
    require_shapes(index, shapes)
    if feeds is None:
        return shapes
    sample_shapes = {name: values.shape for name, values in feeds.first().items()}
    return sample_shapes | shapes


def misses(validation: Validation, thresholds: Thresholds) -> tuple[str, ...]:
    """Return one sentence for each broken promise, refused build and missed threshold."""
    require_type(validation, Validation, "validation", "what qdq.validate returns")
    require_type(thresholds, Thresholds, "thresholds", "qdq.Thresholds(...)")
    sentences: list[str] = []
    for report in validation.engines:
        for broken in report.broken_promises:
            sentences.append(f"{report.target}: {broken}")
    for report in validation.engines:
        if report.failure:
            sentences.append(report.remark)
    outputs = validation.accuracy.outputs if validation.accuracy else ()
    for output in outputs:
        sentences.extend(_describe_missed_thresholds(output, thresholds))
    scores = validation.accuracy.metric if validation.accuracy else None
    if isinstance(scores, MetricScores):
        sentences.extend(_describe_missed_scores(scores, thresholds))
    return tuple(sentences)


def _describe_missed_thresholds(output: OutputError, thresholds: Thresholds) -> Iterator[str]:
    for name in _FIGURES:
        least = getattr(thresholds, name)
        figure = getattr(output, name)
        if least is None or figure is None:
            continue
        if not figure >= least:  # also where the figure is NaN
            actual = f"output {output.name!r}: {name} is {figure:.4g}"
            yield f"{actual}, but at least {least:g} is required"


def _describe_missed_scores(scores: MetricScores, thresholds: Thresholds) -> Iterator[str]:
    """Yield the sentences about the metric; raises UsageError for a drop that it cannot have."""
    actual = f"metric {scores.name} is {scores.quantized:.5g}"
    if thresholds.metric is not None and not scores.quantized >= thresholds.metric:
        yield f"{actual}, but at least {thresholds.metric:g} is required"
    if thresholds.max_drop is None:
        return
    if scores.float_model is None:
        raise no_drop_error(scores.name)
    drop = to_drop(thresholds.max_drop, "max_drop")
    if not drop.allows(scores.quantized, scores.float_model):
        least = drop.least_score(scores.float_model)
        yield (
            f"{actual}, but a drop of {drop} from {scores.float_model:.5g} of the float model "
            f"allows {least:.5g}"
        )


def no_drop_error(metric: str) -> UsageError:
    """Return the error for a drop by a metric that the float model has no score of."""
    return UsageError(
        f"metric {metric}: it measures the distance from the float model, which has no score "
        "to drop from. Require a least score instead (--min-metric)."
    )


def _report_target(
    index: GraphIndex,
    quantized: QuantizedModel,
    target: Target,
    shapes: dict[str, tuple[int, ...]],
    allow_fp16: bool,
) -> EngineReport:
    """Return the report on the engines of one target: predicted or compiled."""
    float_source = _labelled_float_source(index)
    quantized_source = _labelled_quantized_source(quantized)
    if target.backend != "trt":
        float_engine = build_engine(float_source, target, shapes)
        quantized_engine = build_engine(quantized_source, target, shapes)
        return compare_engines(quantized, float_engine, quantized_engine, "compiled")
    float_engine = predict_engine(float_source, target, shapes, allow_fp16=allow_fp16)
    quantized_engine = predict_engine(quantized_source, target, shapes, allow_fp16=allow_fp16)
    report = compare_engines(quantized, float_engine, quantized_engine, "predicted")
    fusion_rules = tuple(_list_fusion_rules(quantized_engine))
    return msgspec.structs.replace(report, fusion_rules=fusion_rules)


def _list_fusion_rules(engine: Engine) -> Iterator[FusionRuleUse]:
    """Yield the rules that a predicted engine's layers follow, in the order of the layers."""
    kinds: dict[str, list[str]] = {}
    for layer in engine.layers:
        kinds.setdefault(layer.fusion_rule, []).append(layer.kind)
    for name, layer_kinds in kinds.items():
        rule = FUSION_RULES[name]
        distinct_kinds = tuple(dict.fromkeys(layer_kinds))
        yield FusionRuleUse(name, rule.description, rule.source, len(layer_kinds), distinct_kinds)


def _report_layer_file(quantized: QuantizedModel, path: Path) -> EngineReport:
    """Return the report on a real engine of the quantized model, whose layers are in a file."""
    engine = read_layer_file(path, Target("trt", 0), _map_engine_names(quantized))
    report = msgspec.structs.replace(
        compare_engines(quantized, engine, engine, "read"),
        target=path.name,
        float_kernels=0,
        float_bytes=0.0,
        float_reformats=0,
    )
    if report.layers and len(report.unmapped) == len(report.layers):
        raise LayerFileError(
            f"{path}: no layer names a weighted node of {quantized.source.name}. "
            "Pass the model that the engine was built from."
        )
    return report


def _map_engine_names(quantized: QuantizedModel) -> dict[str, str]:
    """Return the label of each node, bodies included, by the names that an engine may use for it.

    These are its name in the file and ``node_of_`` followed by its first output; a name in the file
    takes precedence.
    """
    file_graph = quantized.source.model.graph
    labelled_graph = quantized.labelled().graph
    file_nodes = [node for _, node in all_nodes(file_graph)]
    labels = [label for label, _ in all_nodes(labelled_graph)]
    by_output: dict[str, str] = {}
    by_name: dict[str, str] = {}
    for node, label in zip(file_nodes, labels, strict=True):
        if node.output:
            by_output[f"node_of_{node.output[0]}"] = label
        if node.name:
            by_name[node.name] = label
    return by_output | by_name


def _report_measurement(
    index: GraphIndex,
    quantized: QuantizedModel,
    target: Target,
    feeds: Feeds | None,
    libraries: tuple[Path, ...],
) -> EngineReport:
    """Return the report on engines that were run on the GPU."""
    if feeds is None:
        raise UsageError(f"target {target}: an engine runs only with samples. Pass --data.")
    float_run = run_tensorrt(_labelled_float_source(index), target, feeds)
    quantized_run = run_tensorrt(_labelled_quantized_source(quantized), target, feeds)
    report = compare_engines(quantized, float_run.engine, quantized_run.engine, "measured")
    return msgspec.structs.replace(
        report,
        milliseconds=quantized_run.milliseconds,
        float_milliseconds=float_run.milliseconds,
        outputs=output_errors(index, feeds, quantized_run.outputs, libraries),
    )


def _labelled_quantized_source(quantized: QuantizedModel) -> Source:
    """Return the quantized model with every node named by its label."""
    source = quantized.source
    return Source(source.path, quantized.labelled(), source.digest)


def _labelled_float_source(index: GraphIndex) -> Source:
    """Return the float model with every node named by its label."""
    source = index.source
    labelled_model = type(source.model)()
    labelled_model.CopyFrom(source.model)
    labels: list[str] = []
    for scope in index.scopes.values():
        labels.extend(node.label for node in scope.nodes)
    nodes = [node for _, node in all_nodes(labelled_model.graph)]
    for node, label in zip(nodes, labels, strict=True):
        node.name = label
    return Source(source.path, labelled_model, source.digest)
