"""`qdq sensitivity`: the ranking, its outputs, quantized models, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qdq
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import build, node, noise

COUNT = 6
METHOD = ("--method", "mse", "--weights", "max")
CHANNELS = 8
METRICS = """
import numpy as np

def closeness(outputs, sample, float_outputs):
    return 1 - float(np.abs(outputs["y"] - float_outputs["y"]).mean())
"""


def chain(outlier: str = "") -> onnx.ModelProto:
    """Return three convolutions c1, c2, c3 with Relus between.

    With the outlier "activation" the data that c2 reads has one channel of very large values, which
    it multiplies by 0. With "weight" each output of c2 has a very large weight for a channel of
    zeros. Either costs c2 its INT8, and the float model nothing.
    """
    weights = {f"w{i}": noise(CHANNELS, CHANNELS, 1, 1, seed=i) for i in (1, 2, 3)}
    bias = np.zeros(CHANNELS, np.float32)
    if outlier == "activation":
        bias[0] = 3000
        weights["w2"][:, 0] = 0
    if outlier == "weight":
        weights["w1"][0] = 0
        weights["w2"][:, 0] = 300
    nodes = [
        node("Conv", ["x", "w1", "b1"], "a", "c1"),
        node("Relu", ["a"], "ra", "r1"),
        node("Conv", ["ra", "w2"], "b", "c2"),
        node("Relu", ["b"], "rb", "r2"),
        node("Conv", ["rb", "w3"], "y", "c3"),
    ]
    return build(nodes, {"x": [1, CHANNELS, 6, 6]}, ["y"], {**weights, "b1": bias})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: a model whose layer c2 has an outlier, its INT8, and data."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    save(chain("activation"), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=noise(COUNT, CHANNELS, 6, 6, seed=9))
    (tmp_path / "metrics.py").write_text(METRICS)
    return tmp_path


def analyse(*options: object, models: tuple[str, ...] = ("m.onnx",)) -> dict[str, Any]:
    """Return the JSON of the command, with plain methods that nothing steers by outputs."""
    method = () if len(models) > 1 else METHOD
    argv = (*models, "--data", "d.npz", *method, *options, "--format", "json")
    code, text, errors = run("sensitivity", *argv)
    assert code == 0, errors
    record: dict[str, Any] = json.loads(text)
    return record


def quantize_plainly(folder: Path) -> None:
    result = qdq.quantize(
        "m.onnx",
        "d.npz",
        method="mse",
        weights="max",
        recovery=qdq.Recovery(guard=False, methods="off"),
    )
    qdq.save(result.model, result.source, folder / "q.onnx", force=True)


@pytest.mark.parametrize(
    ("outlier", "share"), [("activation", "activation_share"), ("weight", "weight_share")]
)
def test_the_layer_with_the_planted_error_comes_first(
    folder: Path, outlier: str, share: str
) -> None:
    save(chain(outlier), folder / "m.onnx")

    record = analyse()
    worst, *others = record["groups"]

    assert worst["name"] == "c2"
    assert worst["nodes"] == ["c2"]
    assert worst[share] > 0.99
    assert worst["gain_db"] > 10
    assert all(worst["snr_db"] + 10 < group["snr_db"] for group in others)
    assert worst["predicted_snr_db"] < min(group["predicted_snr_db"] for group in others)
    assert abs(record["int8_snr_db"] - worst["snr_db"]) < 1
    assert sum(group["work"] for group in record["groups"]) == pytest.approx(1, abs=1e-5)
    assert (record["samples"], record["by"], record["measured_at"]) == (COUNT, "layer", ["y"])


def test_clipping_is_told_from_rounding(folder: Path) -> None:
    """A range of a tenth of the values clips; the largest value as the range only rounds."""
    (folder / "r.yaml").write_text("ra: 300\n")
    rounded = analyse()["groups"]
    clipped = analyse("--ranges", "r.yaml")["groups"]

    shares = [next(g for g in groups if g["name"] == "c2") for groups in (rounded, clipped)]
    assert shares[0]["clipping_share"] == 0
    assert shares[1]["clipping_share"] > 0.9


def test_ranges_observed_earlier_need_no_calibration(folder: Path) -> None:
    quantize = ("quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npz", "--guard", "off")
    assert run(*quantize, *METHOD, "--save-ranges", "m.ranges")[0] == 0

    assert analyse("--ranges", "m.ranges") == analyse()


def test_largest_values_alone_predict_nothing(folder: Path) -> None:
    group = analyse("--method", "max")["groups"][0]

    assert (group["predicted_snr_db"], group["clipping_share"]) == (None, None)


def test_groups_are_layers_tensors_or_blocks(folder: Path) -> None:
    by_tensor = [group["name"] for group in analyse("--by", "tensor")["groups"]]
    by_block = [group["name"] for group in analyse("--by", "block")["groups"]]

    assert sorted(by_tensor) == ["ra", "rb", "x"]
    assert by_tensor[0] == "ra"
    assert sorted(by_block) == ["c1", "c2", "c3"]
    assert by_block[0] == "c2"


def test_a_metric_ranks_by_the_drop_of_its_score(folder: Path) -> None:
    record = analyse("--metric", "metrics.py:closeness")
    worst, *others = record["groups"]

    assert record["metric"]["name"] == "metrics.py:closeness"
    assert record["metric"]["float_model"] == 1
    assert record["metric"]["int8"] < 1
    assert worst["name"] == "c2"
    assert worst["metric"]["drop"] > max(group["metric"]["drop"] for group in others) > 0
    assert worst["metric"]["gain"] > 0
    assert "metric" not in analyse()["groups"][0]
    assert "metric" not in analyse("--metric", "snr")


def test_few_samples_may_be_measured(folder: Path) -> None:
    assert analyse("--measure", 2)["samples"] == 2
    assert analyse("--measure", 2)["groups"][0]["samples"] == 2


def test_the_text_is_a_ranked_table(folder: Path) -> None:
    code, text, _ = run("sensitivity", "m.onnx", "--data", "d.npz", "--method", "max", "--top", 2)

    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("  layer"))
    assert code == 0
    assert "  2 of 3 groups (--top shows more, JSON all)" in lines
    assert lines[start + 2].split()[0] == "c2"
    assert lines[start + 4] == ""


def test_chart_and_report_are_written_once(folder: Path) -> None:
    outputs = ("--plot", "s.svg", "--report", "s.md")
    code, text, errors = run("sensitivity", "m.onnx", "--data", "d.npz", *outputs)
    assert code == 0, errors
    assert "\n\nwrote s.svg, s.md\n\nnext: " in text
    chart = ElementTree.parse(folder / "s.svg").getroot()
    assert chart.tag == "{http://www.w3.org/2000/svg}svg"
    labels = [item.text for item in chart.iter("{http://www.w3.org/2000/svg}title")]
    assert next(iter(labels)) == "c2"
    assert "<summary>Groups</summary>" in (folder / "s.md").read_text()

    message = refused(folder, "sensitivity", "m.onnx", "--data", "d.npz", "--plot", "s.svg")

    assert message.startswith("qdq: s.svg: ")
    assert run("sensitivity", "m.onnx", "--data", "d.npz", *outputs, "--force")[0] == 0


def test_a_quantized_model_is_ranked_by_its_own_pairs(folder: Path) -> None:
    quantize_plainly(folder)

    record = analyse(models=("m.onnx", "q.onnx"))
    plan = analyse()

    keys = ("name", "nodes", "snr_db", "gain_db", "activation_share", "weight_share")
    assert [[g[k] for k in keys] for g in record["groups"]] == [
        [g[k] for k in keys] for g in plan["groups"]
    ]
    assert record["quantized"] == "q.onnx"
    assert record["notes"] == []


def test_the_error_of_a_quantized_model_is_followed_from_layer_to_layer(folder: Path) -> None:
    quantize_plainly(folder)

    record = analyse(models=("m.onnx", "q.onnx"))

    layers = {layer["node"]: layer for layer in record["layers"]}
    assert list(layers) == ["c1", "c2", "c3"]
    assert layers["c1"]["fall_db"] is None
    assert layers["c2"]["fall_db"] == pytest.approx(
        layers["c1"]["snr_db"] - layers["c2"]["snr_db"], abs=0.011
    )
    assert layers["c2"]["fall_db"] > 20
    assert abs(layers["c3"]["fall_db"]) < 3
    assert layers["c3"]["snr_db"] == pytest.approx(record["int8_snr_db"], abs=0.1)
    text = run("sensitivity", "m.onnx", "q.onnx", "--data", "d.npz")[1]
    assert text.index("\nLayers\n") < text.index("\nGroups\n")


def renamed_by_a_tool(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a quantized model as other tools write it.

    Nodes have no names, weights are stored as integers under other names, the activation after r1
    is UINT8 with the Relu folded into its pair, and biases have pairs of INT32.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    initializers = [
        helper.make_tensor("s", onnx.TensorProto.FLOAT, [], [0.05]),
        helper.make_tensor("z", onnx.TensorProto.INT8, [], [0]),
        helper.make_tensor("su", onnx.TensorProto.FLOAT, [], [12.0]),
        helper.make_tensor("zu", onnx.TensorProto.UINT8, [], [0]),
        numpy_helper.from_array(stored["b1"], "b1"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    for i in (1, 2, 3):
        integers = np.clip(np.rint(stored[f"w{i}"] / 0.02), -127, 127).astype(np.int8)
        initializers += [
            numpy_helper.from_array(integers, f"w{i}_quantized"),
            helper.make_tensor(f"s{i}", onnx.TensorProto.FLOAT, [], [0.02]),
        ]
        names = [f"w{i}_quantized", f"s{i}", "z"]
        nodes.append(helper.make_node("DequantizeLinear", names, [f"w{i}_dq"]))
    nodes += [
        helper.make_node("Conv", ["xd", "w1_dq", "b1"], ["ra"]),
        helper.make_node("QuantizeLinear", ["ra", "su", "zu"], ["raq"]),
        helper.make_node("DequantizeLinear", ["raq", "su", "zu"], ["rad"]),
        helper.make_node("Conv", ["rad", "w2_dq"], ["b"]),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("Conv", ["rb", "w3_dq"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "other", list(model.graph.input), list(model.graph.output), initializers
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


def test_the_pairs_of_other_tools_are_found_in_the_float_model(folder: Path) -> None:
    save(renamed_by_a_tool(chain("activation")), folder / "q.onnx")

    record = analyse(models=("m.onnx", "q.onnx"))

    worst = record["groups"][0]
    assert {group["name"] for group in record["groups"]} == {"c1", "c2", "c3"}
    assert (worst["name"], worst["activation_share"] > 0.9) == ("c2", True)
    assert [layer["node"] for layer in record["layers"]] == ["c1", "c2", "c3"]
    assert [layer["tensor"] for layer in record["layers"]] == ["ra", "b", "y"]
    assert record["notes"] == [
        "1 activation has a zero point or another type; the groups are measured with symmetric "
        "INT8 of the same range, whose steps are up to 2.0 times as large"
    ]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("m.onnx", "sensitivity is measured on samples. Pass --data or --images."),
        (
            "m.onnx --data d.npz --plot s.png",
            "s.png: a chart is SVG. Pass a file that ends in .svg.",
        ),
        ("m.onnx --data d.npz --report s.svg", "s.svg: the suffix chooses the format"),
        ("m.onnx --data d.npz --metric top5", "unknown metric 'top5'. Did you mean 'top1'?"),
        ("m.onnx --data d.npz --leave-float none", "--leave-float: no node is named 'none'"),
        (
            "q.onnx --data d.npz",
            "q.onnx: the model is quantized already. Pass the float model that",
        ),
        ("m.onnx m.onnx --data d.npz", "m.onnx: the model holds no Q/DQ pairs. Pass a quantized"),
        ("m.onnx q.onnx --data d.npz --method max", "--method has no effect: QUANTIZED has its"),
        ("other.onnx q.onnx --data d.npz", "q.onnx: none of its pairs is on an edge of other.onnx"),
        ("m.onnx --data d.npz --plot d.svg", "d.svg: the output is the input"),
    ],
)
def test_bad_input_is_answered_in_one_line(folder: Path, argv: str, expected: str) -> None:
    quantize_plainly(folder)
    (folder / "d.svg").symlink_to("d.npz")
    other = build(
        [node("Conv", ["x", "w"], "z")],
        {"x": [1, CHANNELS, 6, 6]},
        ["z"],
        {"w": noise(4, CHANNELS, 1, 1)},
    )
    save(other, folder / "other.onnx")
    force = ("--force",) if argv.endswith("d.svg") else ()

    assert expected in refused(folder, "sensitivity", *argv.split(), *force)


def test_the_library_raises_for_arguments_of_other_kinds(folder: Path) -> None:
    for arguments, expected in (
        ({"by": "node"}, "unknown groups 'node'"),
        ({"measured": 0}, "measured: "),
        ({"metric": 3}, "metric"),
        ({"measuring_progress": 3}, "measuring_progress"),
    ):
        with pytest.raises(qdq.QdqError, match=expected):
            qdq.measure_sensitivity("m.onnx", "d.npz", **arguments)  # type: ignore[arg-type]


def test_samples_that_can_be_iterated_once_are_enough(folder: Path) -> None:
    samples = [{"x": noise(1, CHANNELS, 6, 6, seed=i)} for i in range(4)]

    once = qdq.measure_sensitivity("m.onnx", iter(samples), method="max")

    assert once.groups == qdq.measure_sensitivity("m.onnx", samples, method="max").groups


def test_the_project_file_gives_data_and_method(folder: Path) -> None:
    (folder / "qdq.yaml").write_text("data: d.npz\nmethod: max\n")

    code, _, errors = run("sensitivity", "m.onnx", "--format", "json")

    assert (code, errors) == (0, "project file qdq.yaml: data, method\n")
