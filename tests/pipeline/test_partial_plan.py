"""The guard and budgets in `quantize`: what they leave in float, and what stays true of the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import qdq
from qdq.checking.checker import check
from qdq.errors import ModelError, UsageError
from qdq.graph.metadata import SENSITIVE_KEY
from qdq.graph.source import canonical_bytes
from qdq.metrics.metric_files import load_metric
from qdq.metrics.score_drop import to_drop
from qdq.pipeline import recovery
from qdq.pipeline.leave_float_file import LeaveFloatRule, format_leave_float_rule
from qdq.pipeline.partial_rule_file import sensitive_yaml
from qdq.planning.decisions import SENSITIVE, SensitiveLayer, parse_sensitive_layer
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.quantized.stripper import strip
from qdq.rules.rule_files import load_rules
from qdq.sensitivity.budget import Budget
from qdq.sensitivity.partial_result import PartialResult
from tests.observers.test_uncomputable_tensors import at_the_end
from tests.support.body_models import branching
from tests.support.body_models import samples as body_samples
from tests.support.cli_runner import tiny_model
from tests.support.graphs import Array, convolution, run
from tests.support.outlier_models import BAD, outlier_model, outlier_samples
from tests.support.sample_values import values


def partial_of(result: qdq.Quantized) -> PartialResult:
    """Return what was measured."""
    assert isinstance(result.partial, PartialResult)
    return result.partial


def measure_db(model: onnx.ModelProto) -> float:
    """Return the signal-to-noise ratio of the planted network's outputs over its samples."""
    error = energy = 0.0
    for sample in outlier_samples():
        feed = {"x": sample[None]}
        expected, actual = run(outlier_model(), feed)[0], run(model, feed)[0]
        error += float(np.square(expected - actual).sum())
        energy += float(np.square(expected).sum())
    return float(10 * np.log10(energy / error))


@pytest.fixture(scope="module")
def guarded() -> qdq.Quantized:
    """Return the planted network, quantized with the guard at 1.5 %."""
    return qdq.quantize(
        outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=0.015, methods="off")
    )


def test_the_guard_leaves_the_planted_layer_in_float(guarded: qdq.Quantized) -> None:
    partial = partial_of(guarded)
    assert [layer.node for layer in partial.sensitive] == [BAD]
    assert partial.snr_db > partial.int8_snr_db + 1
    assert 0 < partial.work < 0.015
    assert partial.work + partial.int8_work == pytest.approx(1.0)
    reasons = {
        item.edge.node: item for item in guarded.plan.left_float if item.because == SENSITIVE
    }
    assert set(reasons) == {BAD}
    assert f"{partial.sensitive[0].gain_db:.2f} dB" in reasons[BAD].reason
    assert BAD not in {item.edge.node for item in guarded.plan.placements}


def test_the_ratio_that_is_stated_is_that_of_the_files(guarded: qdq.Quantized) -> None:
    plain = qdq.quantize(
        outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=False, methods="off")
    )
    partial = partial_of(guarded)
    assert measure_db(plain.model) == pytest.approx(partial.int8_snr_db, abs=1.0)
    assert measure_db(guarded.model) == pytest.approx(partial.snr_db, abs=1.0)


def test_the_result_has_no_findings_and_records_the_layer(guarded: qdq.Quantized) -> None:
    assert guarded.findings == ()
    assert check(guarded.model) == ()
    metadata = {item.key: item.value for item in guarded.model.metadata_props}
    layer = parse_sensitive_layer(metadata[SENSITIVE_KEY])
    assert layer == partial_of(guarded).sensitive[0]


def test_strip_gives_the_model_back(guarded: qdq.Quantized) -> None:
    expected = canonical_bytes(qdq.load(outlier_model()).model)
    assert canonical_bytes(strip(guarded.model)) == expected


def test_the_plan_file_keeps_the_layer(guarded: qdq.Quantized, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(plan_to_yaml(guarded.plan))
    assert f"{partial_of(guarded).sensitive[0]}" in path.read_text()
    assert read_plan(path) == guarded.plan


@pytest.mark.parametrize("existing", ["repair", "keep"])
def test_quantizing_the_result_again_changes_nothing(guarded: qdq.Quantized, existing: str) -> None:
    again = qdq.quantize(guarded.model, outlier_samples(), existing=existing)
    assert again.partial is None
    assert again.plan.sensitive == guarded.plan.sensitive
    assert {item.edge for item in again.plan.placements} == {
        item.edge for item in guarded.plan.placements
    }
    once_more = qdq.quantize(again.model, outlier_samples(), existing=existing)
    assert canonical_bytes(once_more.model) == canonical_bytes(again.model)


def test_replacing_the_pairs_measures_again(guarded: qdq.Quantized) -> None:
    again = qdq.quantize(
        guarded.model,
        outlier_samples(),
        existing="replace",
        recovery=qdq.Recovery(guard=0.015, methods="off"),
    )
    assert partial_of(again).sensitive == partial_of(guarded).sensitive
    without = qdq.quantize(
        guarded.model,
        outlier_samples(),
        existing="replace",
        recovery=qdq.Recovery(guard=False, methods="off"),
    )
    assert BAD in {item.edge.node for item in without.plan.placements}


def test_off_measures_nothing_and_gives_the_plain_plan() -> None:
    plain = qdq.quantize(
        outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=False, methods="off")
    )
    assert plain.partial is None
    assert plain.plan == qdq.plan(outlier_model())


def test_a_part_larger_than_the_guard_stays_in_int8() -> None:
    result = qdq.quantize(
        outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=1e-4, methods="off")
    )
    assert partial_of(result).sensitive == ()
    assert result.plan == qdq.plan(outlier_model())


def test_an_iterator_of_samples_is_measured_too(guarded: qdq.Quantized) -> None:
    """Its first samples are kept."""

    def generate() -> Iterator[dict[str, Array]]:
        for sample in outlier_samples():
            yield {"x": sample[None]}

    result = qdq.quantize(
        outlier_model(), generate(), recovery=qdq.Recovery(guard=0.015, methods="off")
    )
    assert [layer.node for layer in partial_of(result).sensitive] == [BAD]
    assert partial_of(result).samples == partial_of(guarded).samples == 6


def test_a_healthy_model_and_a_model_with_a_plugin_stay_as_they_are() -> None:
    for model in (convolution(), tiny_model(), at_the_end("Nms")):
        result = qdq.quantize(model, "noise")
        assert partial_of(result).sensitive == ()
        assert result.plan == qdq.plan(model)


def test_layers_in_bodies_are_measured() -> None:
    result = qdq.quantize(
        branching(),
        body_samples(branching()),
        recovery=qdq.Recovery(budget=Budget(first=2), methods="off"),
    )
    assert len(partial_of(result).sensitive) == 2
    assert check(result.model) == ()


def test_large_weights_are_not_measured_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_MOST_GUARDED_BYTES", 100)
    result = qdq.quantize(outlier_model(), outlier_samples())
    assert isinstance(result.partial, str)
    assert result.partial.startswith("the guard did not run: it holds the weights")
    assert "--min-snr" in result.partial
    asked = qdq.quantize(
        outlier_model(),
        outlier_samples(),
        recovery=qdq.Recovery(budget=Budget(first=1), methods="off"),
    )
    assert [layer.node for layer in partial_of(asked).sensitive] == [BAD]


def test_a_ratio_is_reached_with_as_little_as_possible() -> None:
    plain = partial_of(
        qdq.quantize(
            outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=1e-4, methods="off")
        )
    )
    target = plain.int8_snr_db + 3
    partial = partial_of(
        qdq.quantize(
            outlier_model(),
            outlier_samples(),
            recovery=qdq.Recovery(budget=Budget(min_snr_db=target), methods="off"),
        )
    )
    assert partial.is_reached
    assert partial.snr_db >= target
    assert [layer.node for layer in partial.sensitive] == [BAD]
    losses = [step.loss for step in partial.steps]
    assert losses == sorted(losses, reverse=True)
    assert partial.steps[0].released == ()


def test_a_share_of_the_work_is_not_exceeded() -> None:
    budget = Budget(keep_float=0.05)
    partial = partial_of(
        qdq.quantize(
            outlier_model(), outlier_samples(), recovery=qdq.Recovery(budget=budget, methods="off")
        )
    )
    assert partial.work <= 0.05
    assert BAD in {layer.node for layer in partial.sensitive}
    limited = Budget(min_snr_db=200.0, keep_float=0.05)
    missed = partial_of(
        qdq.quantize(
            outlier_model(), outlier_samples(), recovery=qdq.Recovery(budget=limited, methods="off")
        )
    )
    assert not missed.is_reached
    assert missed.work <= 0.05


def test_a_drop_of_a_metric_is_reached(tmp_path: Path) -> None:
    script = tmp_path / "metric.py"
    script.write_text(
        "import numpy as np\n"
        "def metric(outputs, sample, float_outputs):\n"
        "    return 1 - float(np.abs(outputs['y'] - sample['wanted']).mean())\n"
    )
    samples = []
    for sample in outlier_samples():
        feed = {"x": sample[None]}
        samples.append({**feed, "wanted": run(outlier_model(), feed)[0]})
    metric = load_metric(str(script))
    drop = 0.5 * (1 - partial_drop(samples, metric))
    budget = Budget(metric=metric, max_drop=to_drop(f"{drop:.6f}", "max_drop"))
    partial = partial_of(
        qdq.quantize(outlier_model(), samples, recovery=qdq.Recovery(budget=budget, methods="off"))
    )
    assert partial.is_reached
    assert not isinstance(partial.scores, msgspec.UnsetType)
    float_score, int8_score, score = partial.scores
    assert float_score == pytest.approx(1.0, abs=1e-5)
    assert int8_score < float_score - drop <= score
    assert [layer.node for layer in partial.sensitive] == [BAD]


def partial_drop(samples: list[dict[str, Array]], metric: object) -> float:
    """Return the score of the whole plan in INT8."""
    budget = Budget(metric=metric, max_drop=to_drop("0.9999", "max_drop"))  # type: ignore[arg-type]
    partial = partial_of(
        qdq.quantize(outlier_model(), samples, recovery=qdq.Recovery(budget=budget, methods="off"))
    )
    assert not isinstance(partial.scores, msgspec.UnsetType)
    assert partial.sensitive == ()
    return partial.scores[1]


def test_a_budget_that_leaves_nothing_in_int8_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"min-snr 250 dB leaves nothing in INT8\. Lower it\.$"):
        qdq.quantize(
            outlier_model(),
            outlier_samples(),
            recovery=qdq.Recovery(budget=Budget(min_snr_db=250.0), methods="off"),
        )


@pytest.mark.parametrize("guard", [-0.1, 1.5, float("nan"), "3%"])
def test_a_guard_that_is_no_share_is_one_line(guard: object) -> None:
    with pytest.raises(UsageError, match="guard"):
        qdq.quantize(
            outlier_model(), outlier_samples(), recovery=qdq.Recovery(guard=guard, methods="off")
        )  # type: ignore[arg-type]


def test_the_rule_file_gives_the_same_plan(tmp_path: Path) -> None:
    result = qdq.quantize(
        outlier_model(),
        outlier_samples(),
        recovery=qdq.Recovery(budget=Budget(first=2), methods="off"),
    )
    partial = partial_of(result)
    path = tmp_path / "m.sensitive.yaml"
    path.write_text(sensitive_yaml("m.sensitive", "m.onnx", partial, load_rules()))
    rules = load_rules(["tensorrt", path])
    again = qdq.quantize(
        outlier_model(),
        outlier_samples(),
        rules=rules,
        recovery=qdq.Recovery(guard=False, methods="off"),
    )
    assert again.plan.placements == result.plan.placements
    for layer in partial.sensitive:
        assert f"{layer.node}: {layer.gain_db:.2f} dB" in path.read_text()


def test_entries_of_another_exporters_graph_are_all_named(tmp_path: Path) -> None:
    rule = LeaveFloatRule("r", "S.", "B.", "s", "E.", ("/a/Conv", BAD, "/b/Conv"))
    path = tmp_path / "r.yaml"
    path.write_text(format_rule(rule))
    rules = load_rules(["tensorrt", path])
    with pytest.raises(UsageError, match=r"no nodes are named '/a/Conv', '/b/Conv'\. Correct them"):
        qdq.plan(outlier_model(), rules=rules)
    plan = qdq.plan(outlier_model(), rules=rules, allow_unmatched=True)
    assert BAD not in {item.edge.node for item in plan.placements}


def format_rule(rule: LeaveFloatRule) -> str:
    """Return the file of a rule."""
    return format_leave_float_rule(rule, load_rules())


@pytest.mark.parametrize(
    "text", ["", "4 dB", "x dB: conv", "nan dB: conv", "inf dB: conv", "1 dB: "]
)
def test_damaged_metadata_is_one_line(guarded: qdq.Quantized, text: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(guarded.model)
    for item in model.metadata_props:
        if item.key == SENSITIVE_KEY:
            item.value = f"{text}\n1.00 dB: {BAD}" if text else "?"
    with pytest.raises(ModelError, match=r"qdq\.sensitive") as caught:
        check(model)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"qdq\.sensitive"):
        qdq.quantize(model, outlier_samples())


def test_a_layer_is_written_and_read() -> None:
    layer = SensitiveLayer("/a dB: b", 4.5)
    assert parse_sensitive_layer(str(layer)) == layer
    assert json.loads(msgspec.json.encode(layer)) == {"node": "/a dB: b", "gain_db": 4.5}


def test_one_sample_is_enough() -> None:
    result = qdq.quantize(
        outlier_model(), values_of_one(), recovery=qdq.Recovery(guard=0.015, methods="off")
    )
    assert [layer.node for layer in partial_of(result).sensitive] == [BAD]


def values_of_one() -> Array:
    """Return one sample."""
    assert values(1).shape[0] == 1
    return outlier_samples(1)
