"""Tensors that no sample fills with values: they have no range, and the rest is quantized."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import qdq
from qdq.errors import DataError
from qdq.ranges.given_ranges import given_by_hand
from tests.support.cli_runner import run, save
from tests.support.graphs import Array, build, noise
from tests.support.graphs import node as make_node


def selecting(threshold: float, *, with_stem: bool = True) -> onnx.ModelProto:
    """Return a Conv of the samples of a batch whose largest value is above a threshold.

    With a stem, another Conv reads all of them.
    """
    nodes = [
        make_node("ReduceMax", ["x"], "m", axes=[1, 2, 3], keepdims=0),
        make_node("Greater", ["m", "t"], "g"),
        make_node("Compress", ["x", "g"], "s", axis=0),
        make_node("Conv", ["s", "w"], "y", name="head"),
    ]
    outputs: dict[str, list[int | str | None]] = {"y": ["k", 4, 4, 4]}
    if with_stem:
        nodes.append(make_node("Conv", ["x", "w"], "z", name="stem"))
        outputs["z"] = ["n", 4, 4, 4]
    weights = {"t": np.float32(threshold), "w": noise(4, 4, 3, 3)}
    return build(nodes, {"x": ["n", 4, 6, 6]}, outputs, weights)


SAMPLES = [{"x": noise(1, 4, 6, 6, seed=seed)} for seed in range(4)]


def largest(feed: dict[str, Array]) -> float:
    return float(feed["x"].max())


@pytest.mark.parametrize("method", ["auto", "max", "percentile"])
def test_the_readers_of_a_tensor_that_no_sample_fills_stay_in_float(method: str) -> None:
    result = qdq.quantize(selecting(1e6), SAMPLES, method=method)
    assert result.scales.unfilled == ("s",)
    assert result.scales.dead == ()
    assert {placement.edge.node for placement in result.plan.placements} == {"stem"}
    assert "head" in {item.edge.node for item in result.plan.left_float}
    assert qdq.check(result.model) == ()


def test_one_sample_that_fills_a_tensor_gives_its_range() -> None:
    threshold = sorted(map(largest, SAMPLES))[-2]
    result = qdq.quantize(selecting(threshold), SAMPLES, method="max")
    scales = {pair.tensor: pair.scales[0] for pair in result.scales.by_pair}
    chosen = max(SAMPLES, key=largest)["x"]
    assert result.scales.unfilled is msgspec.UNSET
    assert scales["s"] == pytest.approx(float(np.abs(chosen).max()) / 127)


def test_parts_of_the_samples_fill_a_tensor_together() -> None:
    threshold = sorted(map(largest, SAMPLES))[-2]
    model = selecting(threshold)
    plan = qdq.plan(model)
    parts = [qdq.observe(model, plan, [feed]) for feed in SAMPLES]
    parts = [
        msgspec.structs.replace(part, data=f"part {number}") for number, part in enumerate(parts)
    ]
    assert qdq.quantize(model, None, given=qdq.merge(parts)).scales.unfilled is msgspec.UNSET
    without = [part for part, feed in zip(parts, SAMPLES, strict=True) if largest(feed) < threshold]
    assert qdq.quantize(model, None, given=qdq.merge(without)).scales.unfilled == ("s",)


def test_a_plan_that_needs_the_tensor_is_refused_with_the_way_out() -> None:
    model = selecting(1e6)
    with pytest.raises(DataError, match=r"no sample fills 's' .* --leave-float 'head'"):
        qdq.calibrate(model, qdq.plan(model), SAMPLES)


def test_a_model_of_which_nothing_else_is_quantized_stays_as_it_is() -> None:
    model = selecting(1e6, with_stem=False)
    result = qdq.quantize(model, SAMPLES)
    assert result.scales.unfilled == ("s",)
    assert result.plan.placements == ()
    assert qdq.strip(result.model).graph == model.graph


def test_a_range_from_elsewhere_is_enough() -> None:
    result = qdq.quantize(selecting(1e6), SAMPLES, given=given_by_hand({"s": 3.0}))
    assert result.scales.unfilled is msgspec.UNSET
    assert {placement.edge.node for placement in result.plan.placements} == {"stem", "head"}


def test_the_output_states_it_and_exported_ranges_omit_the_tensor(tmp_path: Path) -> None:
    model = save(selecting(1e6), tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", x=np.concatenate([feed["x"] for feed in SAMPLES]))
    observed, out = tmp_path / "m.ranges", tmp_path / "q.onnx"
    argv = ("quantize", model, "-o", out, "--data", tmp_path / "x.npz")
    code, text, _ = run(*argv, "--save-ranges", observed)
    assert code == 0
    assert "no sample filled s; the nodes that read it stay in float" in text
    assert "only zeros" not in text
    _, text, _ = run(*argv, "--force", "--format", "json")
    assert json.loads(text)["scales"]["unfilled"] == ["s"]
    yaml = tmp_path / "ranges.yaml"
    assert run("ranges", "export", observed, "--format", "yaml", "-o", yaml)[0] == 0
    assert [line.split(":")[0] for line in yaml.read_text().splitlines()] == ["x"]
