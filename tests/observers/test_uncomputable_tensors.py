"""Plugins that ONNX Runtime lacks: what does not depend on them is observed, the rest is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qdq
from qdq.errors import ModelError, UsageError
from qdq.observers.collection import Observing
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import build, node, noise, value

WEIGHTS = {"w": noise(4, 3, 3, 3, seed=1), "w2": noise(4, 4, 1, 1, seed=2)}

#: An operator of onnxruntime-extensions: the negative and the positive part of a tensor.
EXTENSION = "ai.onnx.contrib"


def with_plugin(domain: str = "", operator: str = "NegPos") -> onnx.ModelProto:
    """Return Conv, a plugin with two results, and a Conv of the first."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node(operator, ["a"], ["n", "p"], "plug", domain=domain),
        node("Conv", ["n", "w2"], "y"),
    ]
    imports = {domain: 1} if domain else {}
    return build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}, WEIGHTS, domains=imports)


def at_the_end(operator: str, domain: str = "") -> onnx.ModelProto:
    """Return two Conv and an operator."""
    nodes = [
        node("Conv", ["x", "w"], "a"),
        node("Conv", ["a", "w2"], "b"),
        node(operator, ["b"], "y", domain=domain),
    ]
    return build(nodes, {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}, WEIGHTS)


def amax_of(model: onnx.ModelProto) -> dict[str, float]:
    """Return the largest values that are observed in a model's planned tensors."""
    ranges = qdq.observe(model, qdq.plan(model), "noise")
    return {item.tensor: item.amax for item in ranges.by_tensor}


@pytest.mark.parametrize("domain", ["", "TRT", "com.microsoft"])
@pytest.mark.parametrize("operator", ["Nms", "EfficientNMS_TRT", "GroupNorm"])
def test_a_plugin_at_the_end_changes_no_range(operator: str, domain: str) -> None:
    assert amax_of(at_the_end(operator, domain)) == amax_of(at_the_end("Relu"))


def test_tensors_that_depend_on_a_plugin_are_named_with_the_ways_out(tmp_path: Path) -> None:
    path = save(with_plugin(), tmp_path / "model.onnx")
    assert refused(tmp_path, "quantize", path, "-o", tmp_path / "q", "--data", "noise") == (
        f"qdq: {path}: ONNX Runtime lacks the operator of node plug (NegPos), on which these "
        "planned tensors depend: 'n'. Pass its library to --ort-library, the tensors' ranges to "
        "--ranges, or keep their readers in float: --leave-float 'y_node'.\n"
    )
    options = ("-o", tmp_path / "q.onnx", "--data", "noise", "--leave-float", "y_node")
    assert run("quantize", path, *options)[0] == 0


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_given_ranges_replace_those_that_cannot_be_observed(method: str) -> None:
    ranges = qdq.given_by_hand({"n": 12.7})
    result = qdq.quantize(with_plugin(), "noise", given=ranges, method=method)
    scales = {pair.tensor: pair.scales for pair in result.scales.by_pair}
    assert np.allclose(scales["n"], 0.1)
    assert len(scales["x"]) == 1
    assert result.ranges is not None
    assert result.ranges.tensors == ("x",)


def test_what_a_body_computes_before_a_plugin_is_observed() -> None:
    branches = {}
    for name in ("then", "else"):
        nodes = [
            node("Conv", ["x", "w"], f"{name}_a"),
            node("Conv", [f"{name}_a", "w2"], f"{name}_b"),
            node("Nms", [f"{name}_b"], f"{name}_y"),
        ]
        output = value(f"{name}_y", [1, 4, 4, 4])
        branches[f"{name}_branch"] = helper.make_graph(nodes, name, [], [output])
    shapes = {"x": [1, 3, 6, 6]}, {"y": [1, 4, 4, 4]}
    model = build([node("If", ["c"], "y", "if", **branches)], *shapes, WEIGHTS)
    model.graph.input.append(value("c", [1], TensorProto.BOOL))
    data = [{"x": noise(1, 3, 6, 6), "c": np.array([choice])} for choice in (True, False)]
    observed = qdq.observe(model, qdq.plan(model), data)
    amax = {item.tensor: item.amax for item in observed.by_tensor}
    assert amax["if.then_branch/then_a"] == amax["if.else_branch/else_a"] > 0
    for branch in model.graph.node[0].attribute:
        branch.g.node[0].op_type = "Decode"
        del branch.g.node[0].input[1:]
    with pytest.raises(ModelError, match=r"--leave-float 'if.else_branch/else_b_node'"):
        qdq.observe(model, qdq.plan(model), data)


def test_a_memory_limit_is_kept_with_a_plugin_at_the_end() -> None:
    model = at_the_end("Nms")
    plan = qdq.plan(model)
    ranges = qdq.observe(model, plan, "noise", observing=Observing(max_memory=4_000_000_000))
    assert {item.tensor: item.amax for item in ranges.by_tensor} == amax_of(model)


@pytest.mark.parametrize("workers", [None, 1])
def test_a_library_computes_its_operators(tmp_path: Path, workers: int | None) -> None:
    extensions = pytest.importorskip("onnxruntime_extensions")
    library = Path(extensions.get_library_path())
    path = save(with_plugin(EXTENSION), tmp_path / "model.onnx")
    observing = Observing(ort_libraries=(library,), workers=workers)
    result = qdq.quantize(path, "noise", observing=observing)
    assert result.ranges is not None
    assert set(result.ranges.tensors) == {"n", "x"}
    validation = qdq.validate(path, result.model, data="noise", ort_libraries=[library])
    assert validation.accuracy is not None
    assert [output.name for output in validation.accuracy.outputs] == ["y"]


@pytest.mark.parametrize("command", ["quantize", "calibrate", "validate"])
def test_a_library_that_is_missing_or_none_is_refused(tmp_path: Path, command: str) -> None:
    model = save(at_the_end("Relu"), tmp_path / "model.onnx")
    plan, quantized = tmp_path / "plan.yaml", tmp_path / "q.onnx"
    assert run("plan", model, "-o", plan)[0] == 0
    assert run("quantize", model, "-o", quantized, "--data", "noise")[0] == 0
    text_file = tmp_path / "library.so"
    text_file.write_text("no library")
    arguments = {
        "quantize": (model, "-o", tmp_path / "out"),
        "calibrate": (model, plan, "-o", tmp_path / "out"),
        "validate": (model, quantized),
    }[command]
    for library, fact in ((tmp_path / "gone.so", "no such file"), (text_file, "cannot load it")):
        options = ("--data", "noise", "--ort-library", library)
        message = refused(tmp_path, command, *arguments, *options)
        assert message.startswith(f"qdq: {library}: ")
        assert fact in message
        assert "--ort-library.\n" in message


def test_the_library_of_the_project_file_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(at_the_end("Relu"), tmp_path / "model.onnx")
    (tmp_path / "qdq.yaml").write_text("ort_library: ops/gone.so\ndata: noise\n")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    code, _, err = run("quantize", "../model.onnx", "-o", "q.onnx")
    assert code == 2
    assert f"{tmp_path / 'ops' / 'gone.so'}: no such file exists" in err


def test_a_missing_library_is_refused_in_the_api() -> None:
    with pytest.raises(UsageError, match=r"gone.so: no such file exists"):
        qdq.quantize(
            at_the_end("Relu"), "noise", observing=Observing(ort_libraries=(Path("gone.so"),))
        )
