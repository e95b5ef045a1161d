"""Quantize folders of models with FP16 around the INT8: a table as Markdown.

    python benchmarks/exports.py --models FOLDER [--models FOLDER] [--only GLOB] > exports.md
    python benchmarks/exports.py --shared ../shared > real.md

The models of folders are calibrated on noise, by their largest values, without a guard; those of
`--shared` on the samples of their tasks, with the defaults (`results.py` states what they need).

For each model and target: whether TensorRT-RTX builds it, the weighted layers by the type that
they multiply in, the FP32 layers by who kept them, kernels and bytes moved, and those of the model
that `qdq cast --to fp16` makes without pairs. Each quantized model has to pass onnx.checker and to
run in ONNX Runtime. Models that have pairs are taken as `qdq quantize` takes them.
`architectures.py` makes a folder of models.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import onnx
from harness import markdown_head, markdown_row
from results import Subject

import qdq
from qdq.data.feeds import NOISE, open_feeds
from qdq.engines.engine import NO_OP, REFORMAT, Engine
from qdq.engines.rtx_compiler import Compiler
from qdq.graph.bodies import qualified_name
from qdq.graph.index import GraphIndex, Node
from qdq.graph.loader import load
from qdq.precision.float_plan import FloatPlan
from qdq.runtime.session import exact_options, open_session, run_outputs

TARGETS = ("rtx:sm75", "rtx:sm86", "rtx:sm120")
TYPES = {"Int8": "INT8", "Half": "FP16", "Float": "FP32"}
#: Nodes around the float part, and those that read no values.
OUTSIDE = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Shape", "Size")
HEADERS = (
    "model",
    "target",
    "INT8 / FP16 / FP32 layers",
    "FP32 nodes kept by rules / by the graph / by none",
    "kernels, FP16 -> INT8",
    "MB moved, FP16 -> INT8",
    "accepted",
)


class Case(NamedTuple):
    """A model, its samples, how it is calibrated, and its cast to FP16 without pairs."""

    path: Path
    samples: Any
    calibration: Mapping[str, Any]
    cast: onnx.ModelProto
    shapes: Mapping[str, tuple[int, ...]]


ON_NOISE = {"method": "max", "recovery": qdq.Recovery(methods="off", guard=False)}


def read_case(path: Path, *, has_task: bool) -> Case:
    """Return a model file's case; pairs are stripped before it is cast."""
    source = load(path)
    samples: Any = Subject(path, importlib.import_module).calibration() if has_task else NOISE
    feed = open_feeds(GraphIndex(source), samples).first()
    shapes = {name: values.shape for name, values in feed.items()}
    calibration: Mapping[str, Any] = {} if has_task else ON_NOISE
    return Case(path, samples, calibration, qdq.cast(qdq.strip(source)).model, shapes)


def accept(quantized: qdq.Quantized, samples: Any) -> str:
    """Return "yes" where onnx.checker and ONNX Runtime take a model, else who does not."""
    refusals = [finding.code for finding in quantized.findings]
    try:
        onnx.checker.check_model(quantized.model, full_check=True)
    except onnx.checker.ValidationError as error:
        refusals.append(f"onnx.checker: {error}")
    try:
        index = GraphIndex(load(quantized.model))
        session = open_session(index, [], exact_options())
        run_outputs(session, index, list(index.outputs), open_feeds(index, samples).first())
    except Exception as error:  # noqa: BLE001 whatever ONNX Runtime raises is the result
        refusals.append(f"ONNX Runtime: {error}")
    return "; ".join(refusals)[:200].replace("\n", " ") or "yes"


def count_weighted(engine: Engine) -> str:
    counts: Counter[str] = Counter()
    for layer in engine.layers:
        counts.update(label for dtype, label in TYPES.items() if layer.multiplies(dtype))
    return " / ".join(str(counts[label]) for label in TYPES.values())


def computes_float32(index: GraphIndex, node: Node) -> bool:
    """Whether a node has float32 values that are no constants.

    Resize and BatchNormalization of FP16 may read constants of float32.
    """
    names = (*node.inputs, *node.outputs)
    return any(
        index.elem_type(name) == onnx.TensorProto.FLOAT and not index.is_constant(name)
        for name in names
        if name
    )


def count_float_nodes(model: onnx.ModelProto, plan: FloatPlan) -> tuple[str, list[str]]:
    """Return the float32 nodes by who kept them, and the labels of those that no one kept.

    Pairs, Casts between types and constants are no nodes of the float part.
    """
    kept = {item.node: item.is_by_rule for item in plan.kept}
    kept_outputs = {item.output: item.is_by_rule for item in plan.kept}  # labels may be positions
    counts: Counter[bool | None] = Counter()
    others: list[str] = []
    for path, scope in GraphIndex(load(model)).scopes.items():
        for node in scope.nodes:
            if node.op in OUTSIDE or not computes_float32(scope, node):
                continue
            label = qualified_name(path, node.label)
            reason = kept.get(label, kept_outputs.get(node.outputs[0]))
            counts[reason] += 1
            if reason is None:
                others.append(label)
    return " / ".join(str(counts[reason]) for reason in (True, False, None)), others


def list_float_layers(engine: Engine, plan: FloatPlan, ends: set[str]) -> list[str]:
    """Return the engine layers that read FP32 values which the model does not have.

    What an INT8 product writes and the ends of the model are FP32 as they should be.
    """
    kept = {item.node for item in plan.kept}
    expected = set(ends)
    for layer in engine.layers:
        if layer.multiplies("Int8") or kept.intersection(layer.nodes):
            expected.update(tensor.name for tensor in layer.outputs)
    found: list[str] = []
    for layer in engine.layers:
        values = [t for t in layer.inputs if t.dtype == "Float" and t.name not in expected]
        if values and not kept.intersection(layer.nodes) and layer.kind not in (NO_OP, REFORMAT):
            found.append(f"{layer.name}: {', '.join(layer.nodes)}")
    return found


def make_row(case: Case, target: str, existing: str, compiler: Compiler) -> tuple[object, ...]:
    """Return the cells of one model and target."""
    cast_engine = compiler.build(case.cast, qdq.parse_target(target), case.shapes)
    head = (case.path.stem, target)
    try:
        quantized = qdq.quantize(
            case.path,
            case.samples,
            targets=target,
            float_type="fp16",
            existing=existing,
            **case.calibration,
        )
    except qdq.QdqError as error:
        return (*head, "-", "-", "-", "-", f"refused: {error}")
    accepted = accept(quantized, case.samples)
    engine = compiler.build(quantized.model, qdq.parse_target(target), case.shapes)
    if engine.failure:
        return (*head, "-", "-", "-", "-", f"does not build: {engine.failure}")
    graph = quantized.model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}
    assert quantized.cast is not None
    plan = quantized.cast.plan
    float_nodes, others = count_float_nodes(quantized.model, plan)
    for line in (*others, *list_float_layers(engine, plan, ends)):
        print(f"{case.path.stem} {target} FP32: {line}", file=sys.stderr)
    kernels = "does not build" if cast_engine.failure else str(cast_engine.kernels)
    return (
        *head,
        count_weighted(engine),
        float_nodes,
        f"{kernels} -> {engine.kernels}",
        f"{cast_engine.bytes / 1e6:.2f} -> {engine.bytes / 1e6:.2f}",
        accepted,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folders = parser.add_mutually_exclusive_group(required=True)
    folders.add_argument("--models", type=Path, action="append")
    folders.add_argument("--shared", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--existing", default="repair", choices=("keep", "repair", "replace"))
    options = parser.parse_args()
    if options.shared:
        sys.path.insert(0, str(options.shared / "tasks"))
    print(markdown_head(HEADERS), flush=True)
    models = options.models or [options.shared / "models"]
    paths = [path for folder in models for path in sorted(folder.glob("*.onnx"))]
    with Compiler() as compiler:
        for path in paths:
            if not fnmatchcase(path.stem, options.only):
                continue
            case = read_case(path, has_task=options.shared is not None)
            for target in options.targets.split(","):
                row = make_row(case, target, options.existing, compiler)
                print(markdown_row(row), flush=True)


if __name__ == "__main__":
    main()
