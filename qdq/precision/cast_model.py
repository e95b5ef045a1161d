"""The cast of a float or Q/DQ model to FP16 or BF16, with the record of what stayed in FP32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
import onnx
from onnx import ModelProto

from qdq.arguments import list_texts, require_type
from qdq.errors import ModelError, UsageError
from qdq.graph.bodies import all_nodes, qualified_name
from qdq.graph.float_types import FP16, FloatType, parse_float_type
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load, raise_source_opset
from qdq.graph.metadata import CAST_KEYS, FLOAT_KEY, KEEP_FP32_KEY
from qdq.graph.opset import FLOAT16_OPSET
from qdq.graph.source import ModelLike, Source
from qdq.planning.decisions import KeptFp32
from qdq.planning.planner import find_quantized_nodes
from qdq.precision.bias_records import write_bias_records
from qdq.precision.float_plan import FloatPlan, FloatRequest, KeptNode, plan_float
from qdq.precision.graph_caster import GraphCaster
from qdq.precision.moved_labels import holds_positions, move_labels
from qdq.precision.paired_pools import find_paired_pools
from qdq.precision.stored_floats import ModelFiles, WeightLoss
from qdq.precision.superfluous_casts import remove_superfluous_casts
from qdq.precision.type_assignment import CastOptions
from qdq.quantized.corrected_biases import read_corrected_biases
from qdq.quantized.stripper import strip_model
from qdq.rules.matcher import require_matches
from qdq.rules.node_selection import describe_selection, make_where
from qdq.rules.rule import (
    KEEP_FP32,
    KEEP_FP32_OPTION,
    Rule,
    RuleSet,
    keep_fp32_rule,
    make_rule_set,
)
from qdq.rules.rule_files import RulesLike, choose_float_rules
from qdq.target import Target, TargetsLike, to_targets

#: The types of the scales of pairs: those of the layers, or float32.
SCALES = ("float", "fp32")

#: The types of the graph's inputs and outputs.
ENDS = ("keep", "fp16")


class CastReport(msgspec.Struct, frozen=True):
    """The decisions of a cast, and their cost."""

    plan: FloatPlan
    #: The losses of stored values beyond rounding, the largest first.
    losses: tuple[WeightLoss, ...]
    #: The Casts in the model, and in the one before.
    casts: int
    casts_before: int


class CastModel(msgspec.Struct, frozen=True):
    """A model that was cast, with its float plan."""

    model: ModelProto
    #: The model before, at the opset that the types need.
    source: Source
    report: CastReport

    @property
    def plan(self) -> FloatPlan:
        """The float plan."""
        return self.report.plan

    @property
    def output_source(self) -> Source:
        """The source whose external data the model still has."""
        return msgspec.structs.replace(self.source, model=self.model, stamp=None)


def cast(  # noqa: PLR0913 keyword arguments of the public function
    model: ModelLike,
    to: str = "fp16",
    *,
    rules: RulesLike | None = None,
    targets: TargetsLike = (),
    keep_fp32: str | Iterable[str] = (),
    allow_unmatched: bool = False,
    amax: Mapping[str, float] | None = None,
    scales: str = "float",
    io: str = "keep",
) -> CastModel:
    """Return a copy of a float or Q/DQ model whose float part is FP16 or BF16.

    The keep-fp32 rules of `rules`, of the set "float" without any, decide which nodes compute in
    float32; `keep_fp32` holds globs of more. `amax` holds the largest absolute values of tensors
    by name. With ``scales="fp32"`` pairs keep scales in float32, with ``io="fp16"`` the graph's
    inputs and outputs are cast too. A model that was cast already comes back unchanged. Raises
    ModelError, RuleError or UsageError. The model passed in is never changed.
    """
    float_type = parse_float_type(to)
    require_type(allow_unmatched, bool, "allow_unmatched", "True or False")
    if not float_type.is_short:
        raise UsageError(f"to: {to!r} is the type that the model has. Pass fp16 or bf16.")
    globs = list_texts(keep_fp32, "keep_fp32", "globs of node names, such as '/head/*'")
    request = CastRequest(
        float_type,
        choose_float_rules(rules),
        to_targets(targets),
        dict(amax or {}),
        require_choice(scales, SCALES, "scales") == "fp32",
        require_choice(io, ENDS, "io") == "fp16",
        allow_unmatched,
        keep_fp32=globs,
    )
    return cast_source(load(model), request)


class CastRequest(msgspec.Struct, frozen=True):
    """The arguments of a cast."""

    float_type: FloatType = FP16
    rules: RuleSet = RuleSet((), ())
    targets: tuple[Target, ...] = ()
    #: The largest absolute value of tensors, by qualified name.
    amax: Mapping[str, float] = msgspec.field(default_factory=dict)
    keeps_scales: bool = False
    casts_ends: bool = False
    allow_unmatched: bool = True
    #: Nodes to compute in FP32, as `--keep-fp32` selects them.
    keep_fp32: tuple[str, ...] = ()
    #: The nodes that a plan keeps in FP32.
    kept: tuple[KeptFp32, ...] = ()


def require_choice(text: str, choices: tuple[str, ...], option: str) -> str:
    """Return a choice; raises UsageError, which names the option, for unknown ones."""
    if text not in choices:
        names = " or ".join(choices)
        raise UsageError(f"{option}: {text!r} is unknown. Pass {names}.")
    return text


def _with_keep_fp32(index: GraphIndex, request: CastRequest) -> RuleSet:
    """Return the rules with one for each `--keep-fp32` text.

    Raises UsageError for an operator or a range that the model has not, unless that is allowed.
    """
    more_rules: list[Rule] = []
    for text in request.keep_fp32:
        where = make_where(index, text, KEEP_FP32_OPTION, request.allow_unmatched)
        more_rules.append(keep_fp32_rule(text, where, describe_selection(text)))
    return make_rule_set(request.rules.names, (*request.rules.rules, *more_rules))


def cast_source(source: Source, request: CastRequest) -> CastModel:
    """Return the cast copy of a loaded model."""
    source = _raise_opset(source, request)
    index = GraphIndex(source)
    float_index = _index_float_model(source, index)
    paired = find_paired_pools(index, float_index) if request.keeps_scales else frozenset()
    plan = _plan(float_index, request, paired)
    model = ModelProto()
    model.CopyFrom(source.model)
    caster = GraphCaster(
        model,
        index,
        float_index,
        frozenset(node.node for node in plan.kept),
        CastOptions(request.float_type, request.casts_ends, request.keeps_scales),
    )
    records = caster.run(read_corrected_biases(source.model, source.name))
    files = ModelFiles(source.name, source.folder)
    remove_superfluous_casts(model.graph, index, request.float_type, files)
    write_bias_records(model, records, caster.copies, request.float_type, files)
    _write_record(model, plan)
    if holds_positions(model):
        _move_records(model, source, float_index)
    losses = sorted(caster.losses, key=lambda loss: (loss.snr_db, loss.tensor))
    report = CastReport(plan, tuple(losses), _count_casts(model), _count_casts(source.model))
    return CastModel(model, source, report)


def _plan(float_index: GraphIndex, request: CastRequest, paired: frozenset[str]) -> FloatPlan:
    rules = _with_keep_fp32(float_index, request)
    if not request.allow_unmatched:
        keeping_rules = [rule for rule in rules.rules if rule.then == KEEP_FP32]
        require_matches(float_index, keeping_rules)
    float_request = FloatRequest(
        request.float_type,
        rules,
        request.targets,
        request.amax,
        _find_decided_nodes(float_index, request),
        request.casts_ends,
        paired,
    )
    return plan_float(float_index, float_request)


def _find_decided_nodes(float_index: GraphIndex, request: CastRequest) -> dict[str, KeptNode]:
    """Return the nodes that an earlier cast or the plan keeps, by first output."""
    nodes = read_kept_nodes(float_index.source.model, request.float_type)
    kept_by_label = {kept.node: kept for kept in request.kept}
    for path, scope in float_index.scopes.items():
        for node in scope.nodes:
            kept = kept_by_label.get(qualified_name(path, node.label))
            if kept is not None:
                output = node.outputs[0]
                nodes[output] = KeptNode("", node.op, kept.because, kept.reason, output)
    return nodes


def _raise_opset(source: Source, request: CastRequest) -> Source:
    """Return the source at the opset that the operators and pairs need in the type."""
    opset = request.float_type.opset
    if not request.keeps_scales and find_quantized_nodes(source):
        opset = max(opset, FLOAT16_OPSET)
    return raise_source_opset(source, opset, "16-bit")


def _index_float_model(source: Source, index: GraphIndex) -> GraphIndex:
    """Return the index of the model without pairs."""
    if not find_quantized_nodes(source):
        return index
    stripped = strip_model(source.model, source.location)
    return GraphIndex(msgspec.structs.replace(source, model=stripped, stamp=None))


def read_kept_nodes(model: ModelProto, float_type: FloatType) -> dict[str, KeptNode]:
    """Return the nodes that an earlier cast to the same type kept, by first output."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get(FLOAT_KEY) != float_type.name:
        return {}
    text = metadata.get(KEEP_FP32_KEY, "[]")
    try:
        rows = msgspec.json.decode(text.encode(), type=list[tuple[str, str, str]])
    except msgspec.MsgspecError as error:
        name = model.graph.name or "model"
        raise ModelError(
            f"{name}: the metadata entry {KEEP_FP32_KEY!r} cannot be read. Remove it."
        ) from error
    return {output: KeptNode("", "", because, reason, output) for output, because, reason in rows}


def _move_records(model: ModelProto, source: Source, float_index: GraphIndex) -> None:
    """Write the labels of a cast model's own nodes into its metadata."""
    cast_copy = msgspec.structs.replace(source, model=model, stamp=None)
    move_labels(model, float_index, _index_float_model(cast_copy, GraphIndex(cast_copy)))


def _write_record(model: ModelProto, plan: FloatPlan) -> None:
    """Write the type and the nodes that rules kept into a model's metadata."""
    remaining = [entry for entry in model.metadata_props if entry.key not in CAST_KEYS]
    kept_entries = ModelProto(metadata_props=remaining)
    del model.metadata_props[:]
    model.metadata_props.extend(kept_entries.metadata_props)
    model.metadata_props.add(key=FLOAT_KEY, value=plan.to)
    casts = {node.output[0]: node for _, node in all_nodes(model.graph) if node.op_type == "Cast"}
    rows: list[tuple[str, str, str]] = []
    for kept in plan.kept:
        output = kept.output
        if kept.operator != "Cast" and output in casts:  # the result of the model is cast
            output = casts[output].input[0]
        if kept.is_by_rule:
            rows.append((output, kept.because, kept.reason))
    if rows:
        value = msgspec.json.encode(sorted(rows)).decode()
        model.metadata_props.add(key=KEEP_FP32_KEY, value=value)


def _count_casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for _, node in all_nodes(model.graph))
