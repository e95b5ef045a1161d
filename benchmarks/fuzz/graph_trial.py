"""One generated graph: what must hold of its plan, its quantized model and every repair of it."""

from __future__ import annotations

import functools
import random
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

import qdq
from fuzz.file_trial import cache_shipped_rules, describe_exception, shorten
from fuzz.graph_generator import generate_model
from fuzz.other_spelling import rename, shuffle
from fuzz.outcomes import FAILED, REFUSED, WORKED, Outcome
from fuzz.pair_moves import move_pairs
from qdq.engines.engine import Engine
from qdq.engines.prediction.predictor import predict_engine
from qdq.errors import QdqError
from qdq.graph.index import GraphIndex
from qdq.graph.source import canonical_bytes
from qdq.planning.decisions import Plan
from tests.support.dither import rounding_bounds
from tests.support.graphs import Array, run

_PREDICTED = qdq.parse_target("trt:sm80")
_COMPILED = qdq.parse_target("rtx:sm86")

#: Of how many graphs one is held to the invariants that take longest.
_SOME, _FEW = 2, 200
#: Rounding errors that a repair may add: twice their size, as they are random.
_MOST_GROWTH = 4.0

_Feed = dict[str, Array]


class GraphTrials:
    """Holds the graphs of seeds to the invariants."""

    def __init__(self) -> None:
        cache_shipped_rules()
        self.rules = qdq.load_rules()

    def close(self) -> None:
        """Nothing is left open."""

    def files(self, seed: int) -> dict[str, bytes]:
        """Return the model of a seed, and with its pairs, and with some of them moved."""
        trial = _GraphTrial(seed, self.rules)
        models = {"float": trial.model}
        if trial.quantize():
            models["int8"] = trial.quantized.model
            models["moved"] = trial.moved()[0]
        return {f"{seed}.{name}.onnx": m.SerializeToString() for name, m in models.items()}

    def run(self, seed: int) -> list[Outcome]:
        """Return what became of every invariant."""
        trial = _GraphTrial(seed, self.rules)
        outcomes = [trial.judge("the model is valid", trial.find_generator_fault)]
        if outcomes[0].kind == FAILED:
            return outcomes
        outcomes.append(trial.judge("names and order change nothing", trial.find_other_plan))
        outcomes.append(trial.judge("quantize works", trial.find_refusal))
        if outcomes[-1].kind == WORKED:
            outcomes += [trial.judge(name, find) for name, find in trial.invariants().items()]
        return outcomes


class _Violation(Exception):
    """An invariant does not hold; the first argument is alike for all violations of one sort."""


class _GraphTrial:
    def __init__(self, seed: int, rules: Any) -> None:
        self.seed, self.rules = seed, rules
        self.model = generate_model(seed)

    def judge(self, name: str, find_fault: Callable[[], str | None]) -> Outcome:
        """Return whether an invariant holds."""
        try:
            result = find_fault()
        except _Violation as violation:
            fault, *details = violation.args
            return Outcome(self.seed, name, "graph", FAILED, fault, "\n".join(map(str, details)))
        except QdqError as error:
            return Outcome(self.seed, name, "graph", FAILED, type(error).__name__, str(error))
        except Exception as error:  # noqa: BLE001 that none comes is what is tried
            details = shorten(traceback.format_exc())
            return Outcome(self.seed, name, "graph", FAILED, describe_exception(error), details)
        return Outcome(self.seed, name, "graph", result or WORKED)

    def invariants(self) -> Mapping[str, Callable[[], str | None]]:
        """Return what must hold of a quantized model; some of it is judged for some seeds."""
        invariants = {
            "strip returns the float model": self.find_strip_difference,
            "check of what quantize wrote is clean": self.find_findings,
            "check --fix lowers neither INT8 nor SNR": self.find_worse_repair,
        }
        if self.seed % _SOME == 0:
            invariants["quantize twice is quantize"] = self.find_second_change
            invariants["the error is within the scales"] = self.find_large_error
        else:
            invariants["check --fix twice is check --fix"] = self.find_second_repair
        if self.seed % _FEW == 0:
            invariants["compiled engines keep INT8 under check --fix"] = self.find_worse_engine
        return invariants

    # The float model.

    def find_generator_fault(self) -> str | None:
        onnx.checker.check_model(self.model, full_check=True)
        outputs = run(self.model, self.feeds()[0])
        if not all(np.isfinite(output.astype(np.float64)).all() for output in outputs):
            raise _Violation("the float model overflows")
        return None

    def find_other_plan(self) -> str | None:
        reference, rng = describe_plan(self.model, self.plan), random.Random(self.seed)
        other = shuffle(rename(self.model, rng), rng)
        changed = describe_plan(other, qdq.plan(other, rules=self.rules))
        if changed != reference:
            raise _Violation("the plan differs", reference - changed, changed - reference)
        return None

    @functools.cached_property
    def plan(self) -> Plan:
        """The plan of the float model."""
        return qdq.plan(self.model, rules=self.rules)

    def feeds(self) -> list[_Feed]:
        """Return samples for every condition."""
        shape = [d.dim_value for d in self.model.graph.input[0].type.tensor_type.shape.dim]
        half = self.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        values = np.random.default_rng(self.seed).standard_normal((2, *shape))
        feeds = [{"x": value.astype(np.float16 if half else np.float32)} for value in values]
        if len(self.model.graph.input) > 1:
            feeds = [{**feed, "condition": np.array(c)} for feed in feeds for c in (True, False)]
        return feeds

    # The quantized model.

    def quantize(self) -> bool:
        """Quantize the model; return whether there was anything to quantize."""
        if not self.plan.placements:
            return False
        self.quantized = qdq.quantize(self.model, self.feeds(), method="max", rules=self.rules)
        return True

    def find_refusal(self) -> str | None:
        return None if self.quantize() else REFUSED

    def find_strip_difference(self) -> str | None:
        if canonical_bytes(qdq.strip(self.quantized.model)) != canonical_bytes(
            qdq.load(self.model).model
        ):
            raise _Violation("strip returns another model")
        return None

    def find_second_change(self) -> str | None:
        again = qdq.quantize(self.quantized.model, None, rules=self.rules)
        if describe_pairs(again.model) != describe_pairs(self.quantized.model):
            difference = qdq.diff(self.quantized.model, again.model)
            raise _Violation("pairs or scales change", difference.pairs, difference.weights)
        return None

    def find_findings(self) -> str | None:
        findings = [
            f for f in qdq.check(self.quantized.model, rules=self.rules) if f.severity != "note"
        ]
        if findings:
            raise _Violation(f"findings {sorted({f.code for f in findings})}", *findings)
        return None

    def find_large_error(self) -> str | None:
        if self.exceeds_rounding(self.quantized.model):
            raise _Violation("an error is above the bound of rounding")
        return None

    def exceeds_rounding(self, model: onnx.ModelProto) -> bool:
        """Whether an error of a model is above what the scales of the quantized model explain."""
        for feed in self.feeds()[:1]:
            expected, actual = run(self.model, feed), run(model, feed)
            bounds = rounding_bounds(self.quantized.model, feed)
            for e, a, bound in zip(expected, actual, bounds, strict=True):
                if not np.abs(a.astype(np.float64) - e).max(initial=0.0) <= bound:
                    return True
        return False

    # Repairs.

    def moved(self) -> tuple[onnx.ModelProto, list[str]]:
        return move_pairs(self.quantized.model, self.largest_values(), random.Random(self.seed))

    def largest_values(self) -> dict[str, float]:
        """Return the largest value of every computed float tensor of the main graph."""
        observed = onnx.ModelProto()
        observed.CopyFrom(self.model)
        names = [node.output[0] for node in self.model.graph.node if node.op_type != "Constant"]
        del observed.graph.output[:]
        observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
        amax = dict.fromkeys(names, 0.0)
        for feed in self.feeds()[:2]:
            for name, value in zip(names, run(observed, feed), strict=True):
                amax[name] = max(amax[name], float(np.abs(value).max(initial=0.0)))
        weights = {tensor.name for tensor in self.model.graph.initializer}
        return {name: value for name, value in amax.items() if name not in weights}

    @functools.cached_property
    def repair(self) -> tuple[onnx.ModelProto, onnx.ModelProto, list[str]]:
        """Return the model with moved pairs, what check --fix makes of it, and the moves."""
        moved, changes = self.moved()
        fixed = qdq.fix(moved, rules=self.rules)
        return moved, moved if fixed is None else fixed.model, changes

    def find_worse_repair(self) -> str | None:
        moved, fixed, changes = self.repair
        layers = [count_int8(model, predict_engine(model, _PREDICTED)) for model in (moved, fixed)]
        if layers[1] < layers[0]:
            raise _Violation("fewer INT8 layers", f"{layers[0]} -> {layers[1]}", changes)
        powers = [self.error_power(model) for model in (self.quantized.model, moved, fixed)]
        for whole, before, after in zip(*powers, strict=True):
            is_lower = after > _MOST_GROWTH * max(whole, before) + 1e-9
            if is_lower and self.exceeds_rounding(fixed):
                raise _Violation("a lower SNR", f"{whole}, {before} -> {after}", changes)
        return None

    def error_power(self, model: onnx.ModelProto) -> list[float]:
        """Return the mean square error of every output, relative to its mean square."""
        errors, squares = [], []
        for feed in self.feeds()[:2]:
            for expected, actual in zip(run(self.model, feed), run(model, feed), strict=True):
                reference = expected.astype(np.float64)
                errors.append(((actual - reference) ** 2).sum())
                squares.append((reference**2).sum())
        half = len(errors) // 2
        return [
            float((errors[i] + errors[half + i]) / max(squares[i] + squares[half + i], 1e-9))
            for i in range(half)
        ]

    def find_second_repair(self) -> str | None:
        _, fixed, changes = self.repair
        again = qdq.fix(fixed, rules=self.rules)
        if again is not None and describe_pairs(again.model) != describe_pairs(fixed):
            raise _Violation("a second repair changes pairs", changes)
        findings = [f for f in qdq.check(fixed, rules=self.rules) if f.severity == "error"]
        if findings:
            raise _Violation(f"errors stay: {sorted({f.code for f in findings})}", changes)
        return None

    def find_worse_engine(self) -> str | None:
        from qdq.engines.rtx_compiler import build_engine

        moved, fixed, changes = self.repair
        before, after = (build_engine(model, _COMPILED) for model in (moved, fixed))
        if after.failure and not before.failure:
            raise _Violation("the compiler refuses the repair", after.failure, changes)
        layers = count_int8(moved, before), count_int8(fixed, after)
        if not before.failure and layers[1] < layers[0]:
            raise _Violation("fewer INT8 layers", f"{layers[0]} -> {layers[1]}", changes)
        return None


def count_int8(model: onnx.ModelProto, engine: Engine) -> int:
    """Return how many weighted nodes the engine's layers run in INT8, fused with others or not."""
    labels = GraphIndex(qdq.load(model)).by_label
    weighted = {label for label, node in labels.items() if node.op in ("Conv", "Gemm", "MatMul")}
    layers = [layer for layer in engine.layers if layer.multiplies("Int8")]
    return len(weighted.intersection(label for layer in layers for label in layer.nodes))


def describe_plan(model: onnx.ModelProto, plan: Plan) -> Counter[tuple[object, ...]]:
    """Return the decisions of a plan without names, with how many edges have them."""
    scopes = GraphIndex(qdq.load(model)).scopes
    decisions: Counter[tuple[object, ...]] = Counter()
    for item in (*plan.placements, *plan.left_float):
        scope = scopes[item.edge.graph]
        decision = str(getattr(item, "quantizer", "float"))
        node = scope.by_label[item.edge.node]
        decisions[
            node.op, item.edge.slot, scope.shape(item.edge.tensor), decision, item.because
        ] += 1
    decisions.update(("shares", len(group.tensors)) for group in plan.scale_groups)
    return decisions


def describe_pairs(model: onnx.ModelProto) -> Counter[tuple[object, ...]]:
    """Return the pairs of a model by tensor, scale and readers."""
    index = GraphIndex(qdq.load(model))
    pairs: Counter[tuple[object, ...]] = Counter()
    for path, scope in index.scopes.items():
        for node in scope.nodes:
            if node.op == "QuantizeLinear":
                scale = scope.constant(node.inputs[1]).tobytes()
                pairs[path, node.inputs[0], scale] += 1
            elif node.op == "DequantizeLinear":
                continue
            else:
                pairs[
                    path,
                    node.op,
                    node.label,
                    tuple(n.endswith("_dequantized") for n in node.inputs),
                ] += 1
    return pairs
