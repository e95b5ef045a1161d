"""End to end, through the command line and the library, on the fixture networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qdq
from qdq.calibration.scales import read_scales, scales_to_json
from qdq.cli import COMMANDS
from qdq.graph.index import Edge, GraphIndex
from qdq.planning.decisions import LeftFloat, Placement, Plan, ScaleGroup
from qdq.planning.plan_file import plan_to_yaml, read_plan
from qdq.quantizer import FORMATS, Quantizer
from qdq.target import parse_target
from tests.support.cli_runner import run as cli
from tests.support.cli_runner import samples, save, tiny_model
from tests.support.graphs import CALIBRATION, DIGITS, convolution, models, paired_edges, run
from tests.support.paths import NETWORKS

ACCURACY = json.loads((NETWORKS / "accuracy.json").read_text())


def top1(path: Path) -> float:
    """Return the accuracy that fixtures/networks/accuracy.py measures."""
    command = [sys.executable, str(NETWORKS / "accuracy.py"), str(path)]
    return float(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    )


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return digits_cnn quantized by the command line."""
    out = tmp_path_factory.mktemp("quantized") / "cnn.onnx"
    assert cli("quantize", NETWORKS / "digits_cnn.onnx", "-o", out, "--data", CALIBRATION)[0] == 0
    return out


@pytest.mark.parametrize("method", ["auto", "mse", "max", "percentile"])
@pytest.mark.parametrize("name", DIGITS)
def test_the_fixture_networks_keep_their_accuracy(tmp_path: Path, name: str, method: str) -> None:
    model, out = NETWORKS / f"{name}.onnx", tmp_path / "int8.onnx"
    code, text, error = cli("quantize", model, "-o", out, "--data", CALIBRATION, "--method", method)
    assert (code, error) == (0, "")
    assert "no findings" in text
    assert text.endswith(f"wrote {out}\n")
    assert top1(out) >= ACCURACY[model.name]["float_top1"] - 0.015
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert cli("check", out) == (0, f"{out}: no findings\n", "")


def test_the_float_networks_have_the_accuracy_that_is_written_down() -> None:
    assert top1(NETWORKS / "digits_cnn.onnx") == pytest.approx(
        ACCURACY["digits_cnn.onnx"]["float_top1"], abs=0.004
    )


@pytest.mark.parametrize("name", DIGITS)
def test_stripping_a_fixture_network_gives_it_back(tmp_path: Path, name: str) -> None:
    model, out, back = NETWORKS / f"{name}.onnx", tmp_path / "int8.onnx", tmp_path / "float.onnx"
    assert cli("quantize", model, "-o", out, "--data", CALIBRATION)[0] == 0
    code, text, _ = cli("strip", out, "-o", back)
    assert code == 0
    assert "removed" in text
    source = qdq.load(model)
    assert back.read_bytes() == source.model.SerializeToString(deterministic=True)
    assert paired_edges(source.model, onnx.load(out))
    if not source.notes:
        assert onnx.load(back) == onnx.load(model)


def test_another_process_with_another_hash_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        out, report = tmp_path / f"{seed}.onnx", tmp_path / f"{seed}.json"
        options = ("-o", str(out), "--data", str(CALIBRATION), "--report", str(report))
        command = [
            sys.executable,
            "-m",
            "qdq",
            "quantize",
            str(NETWORKS / "digits_cnn.onnx"),
            *options,
        ]
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        written.append((out.read_bytes(), report.read_bytes()))
    assert written[0] == written[1]


# --- reports and JSON ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".md", ".txt"])
def test_a_report_holds_plan_calibration_check_and_accuracy(tmp_path: Path, suffix: str) -> None:
    report = tmp_path / f"report{suffix}"
    options = (
        "--data",
        CALIBRATION,
        "--leave-float",
        "/head/Gemm",
        "--report",
        report,
        "--validate",
    )
    code, _, error = cli(
        "quantize", NETWORKS / "digits_cnn.onnx", "-o", tmp_path / "q.onnx", *options
    )
    assert (code, error) == (0, "")
    text = report.read_text()
    if suffix == ".json":
        content = json.loads(text)
        assert content["qdq_json"] == 2
        assert content["scales"]["samples"] == 64
        assert content["plan"]["leave_float"] == ["/head/Gemm"]
        assert content["validation"]["accuracy"]["outputs"][0]["top1_agreement"] >= 0.95
        assert content["findings"] == content["misses"] == []
        return
    heads = ["Plan", "Calibration", "Check", "Accuracy in ONNX Runtime, float against quantized"]
    if suffix == ".md":
        heads = [f"<details><summary>{head}</summary>" for head in heads]
    assert set(heads) <= set(text.splitlines())
    assert "digits_cnn.onnx: 26 edges quantized, for trt:sm80" in text
    assert "--leave-float /head/Gemm" in text
    assert "auto over 64 samples of digits-calibration.npz" in text
    assert "no findings" in text
    assert "top-1 agreement" in text
    assert ("| rule" in text) == (suffix == ".md")


def test_reports_of_other_kinds_are_refused_before_the_work_begins(tmp_path: Path) -> None:
    code, _, error = cli(
        "quantize",
        NETWORKS / "digits_cnn.onnx",
        "-o",
        tmp_path / "q.onnx",
        "--data",
        CALIBRATION,
        "--report",
        tmp_path / "r.pdf",
    )
    assert code == 2
    assert "Pass a file that ends in .html, .md, .json, .txt." in error
    assert list(tmp_path.iterdir()) == []


EDGE = {"graph", "node", "slot", "tensor"}
PLAN = {
    "model",
    "digest",
    "notes",
    "targets",
    "rule_sets",
    "leave_float",
    "placements",
    "left_float",
    "scale_groups",
    "profiles",
}


def answer(*argv: object, code: int = 0) -> dict[str, Any]:
    """Return what a command prints as JSON."""
    got, out, error = cli(*argv, "--format", "json")
    assert (got, error) == (code, "")
    content: dict[str, Any] = json.loads(out)
    assert content.pop("qdq_json") == 2
    return content


def test_the_json_of_quantize_has_its_keys(tmp_path: Path) -> None:
    content = answer(
        "quantize",
        NETWORKS / "digits_cnn.onnx",
        "-o",
        tmp_path / "q.onnx",
        "--data",
        CALIBRATION,
        "--validate",
    )
    assert set(content) == {"plan", "scales", "findings", "validation", "misses", "partial"}
    assert set(content["plan"]) == PLAN
    assert set(content["plan"]["placements"][0]) == {"edge", "quantizer", "because"}
    assert set(content["plan"]["placements"][0]["edge"]) == EDGE
    assert set(content["plan"]["placements"][0]["quantizer"]) == {"name", "dtype", "axis"}
    assert set(content["plan"]["left_float"][0]) == {"edge", "because", "reason"}
    assert set(content["scales"]) == {
        "plan",
        "method",
        "data",
        "samples",
        "by_pair",
        "dead",
        "batch",
        "outliers",
        "shared",
        "given_ranges",
    }
    assert set(content["scales"]["by_pair"][0]) == {"tensor", "quantizer", "scales"}
    assert set(content["validation"]) == {"model", "quantized", "accuracy", "engines"}
    assert set(content["validation"]["accuracy"]) == {"data", "samples", "outputs"}
    assert set(content["validation"]["accuracy"]["outputs"][0]) == {
        "name",
        "max_abs",
        "mean_abs",
        "cosine",
        "snr_db",
        "top1_agreement",
        "shape_mismatches",
    }


def test_the_json_of_the_other_commands_has_its_keys(quantized: Path) -> None:
    model = NETWORKS / "digits_cnn.onnx"
    assert set(answer("plan", model)) == PLAN
    explained = answer("explain", model, "/head/Gemm")
    assert set(explained) == {"name", "explanations"}
    assert set(explained["explanations"][0]) == {
        "edge",
        "decision",
        "rule",
        "says",
        "because",
        "see",
        "evidence",
    }
    checked = answer("check", quantized)
    assert checked == {
        "models": [{"model": str(quantized), "findings": [], "failure": "", "fixed": []}],
        "stale": [],
    }
    missing = answer("check", quantized, model, code=1)
    assert set(missing["models"][1]["findings"][0]) == {
        "code",
        "severity",
        "where",
        "node",
        "problem",
        "cost",
        "rule",
        "rule_text",
        "fix",
        "page",
    }
    assert set(answer("facts")["facts"][0]) == {"word", "context", "description", "parameters"}
    assert set(answer("rules")) == {"names", "rules"}
    assert set(answer("validate", model, quantized, "--data", CALIBRATION)) == {
        "plan",
        "scales",
        "findings",
        "validation",
        "misses",
    }


# --- plan, calibrate, apply ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIGITS)
def test_plan_calibrate_apply_writes_the_same_bytes_as_quantize(tmp_path: Path, name: str) -> None:
    model = NETWORKS / f"{name}.onnx"
    plan, scales, out, once = (
        tmp_path / n for n in ("plan.yaml", "scales.json", "q.onnx", "once.onnx")
    )
    steps = (
        ("plan", model, "-o", plan, "--target", "rtx:sm86"),
        ("calibrate", model, plan, "--data", CALIBRATION, "-o", scales),
        ("apply", model, plan, scales, "-o", out),
        ("quantize", model, "-o", once, "--data", CALIBRATION, "--target", "rtx:sm86"),
    )
    for step in steps:
        code, _, error = cli(*step)
        assert (code, error) == (0, "")
    assert out.read_bytes() == once.read_bytes()


def test_an_edited_plan_is_carried_out_as_it_says(tmp_path: Path) -> None:
    model = NETWORKS / "digits_plain.onnx"
    plan, scales, out = (tmp_path / n for n in ("plan.yaml", "scales.json", "q.onnx"))
    assert cli("plan", model, "-o", plan)[0] == 0
    last = read_plan(plan).placements[-1].edge.node
    head, block, _ = plan.read_text().partition(f'- node: "{last}"\n')
    assert block
    plan.write_text(f"# reviewed by hand\n{head}")
    assert cli("calibrate", model, plan, "--data", CALIBRATION, "-o", scales)[0] == 0
    assert cli("apply", model, plan, scales, "-o", out)[0] == 0
    edited = read_plan(plan)
    source = qdq.load(model)
    assert len(paired_edges(source.model, onnx.load(out))) == len(edited.placements) == 4
    assert top1(out) >= ACCURACY[model.name]["float_top1"] - 0.015
    code, text, _ = cli("check", out)
    assert code == 1
    assert text.count("missing-pair") == 2


def test_scales_of_an_unedited_plan_do_not_fit_an_edited_one(tmp_path: Path) -> None:
    model = NETWORKS / "digits_plain.onnx"
    plan, scales = tmp_path / "plan.yaml", tmp_path / "scales.json"
    assert cli("plan", model, "-o", plan)[0] == 0
    assert cli("calibrate", model, plan, "--data", CALIBRATION, "-o", scales)[0] == 0
    plan.write_text(plan.read_text().replace("because: weighted-inputs", "because: me"))
    code, _, error = cli("apply", model, plan, scales, "-o", tmp_path / "q.onnx")
    assert code == 2
    assert "the scales were computed for another plan. Calibrate again with this one." in error


settled = settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
#: Texts that YAML reads as something else where they stand without quotes.
ODD = [
    "",
    "1",
    "1e3",
    "0x1",
    "12:30",
    "yes",
    "null",
    "~",
    "=",
    "<<",
    "- a",
    "a: b",
    "#0",
    "a #b",
    "'",
    '"',
    "{",
    "[x]",
    "%",
    "@",
    "`",
    "|",
    ">",
]
SPACES = ["a\nb", " a ", "\t", "\x85", "\u2028"]
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [*ODD, *SPACES]
)
EDGES = st.builds(Edge, st.just(""), NAMES, st.integers(0, 9), NAMES)
#: Of slots that EDGES does not have: no edge is decided twice.
OTHER_EDGES = st.builds(Edge, NAMES, NAMES, st.integers(10, 19), NAMES)
QUANTIZERS = st.builds(
    lambda name, axis: Quantizer(name, FORMATS[name].dtype, axis),
    st.sampled_from(sorted(FORMATS)),
    st.none() | st.integers(0, 5),
)
TUPLES = st.lists(NAMES, max_size=3).map(tuple)
PLANS = st.builds(
    Plan,
    model=NAMES,
    digest=NAMES,
    notes=TUPLES,
    targets=st.lists(
        st.sampled_from([parse_target(t) for t in ("trt", "trt:sm80", "rtx:sm86")]), max_size=2
    ).map(tuple),
    rule_sets=TUPLES,
    leave_float=TUPLES,
    placements=st.lists(
        st.builds(Placement, EDGES, QUANTIZERS, TUPLES), max_size=3, unique_by=lambda p: p.edge
    ).map(tuple),
    left_float=st.lists(
        st.builds(LeftFloat, OTHER_EDGES, NAMES, NAMES),
        max_size=3,
        unique_by=lambda item: item.edge,
    ).map(tuple),
    scale_groups=st.lists(
        st.builds(ScaleGroup, TUPLES, TUPLES, st.none() | st.floats(1, 99)), max_size=2
    ).map(tuple),
)


@settled
@given(PLANS)
def test_a_plan_is_the_same_after_a_round_trip_through_its_file(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_bytes(plan_to_yaml(plan).encode())
    read = read_plan(path)
    for field in msgspec.structs.fields(Plan):
        was, now = getattr(plan, field.name), getattr(read, field.name)
        edges = field.name in ("placements", "left_float")  # these are put in groups, by node
        assert sorted(now, key=repr) == sorted(was, key=repr) if edges else now == was, field.name
    assert yaml.safe_load(plan_to_yaml(plan))["model"] == plan.model
    path.write_bytes(plan_to_yaml(read).encode())
    assert read_plan(path) == read


@settled
@given(models())
def test_plan_and_scales_of_a_model_are_the_same_after_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, model: onnx.ModelProto
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    plan = qdq.plan(model)
    scales = qdq.calibrate(model, plan, "noise", method="percentile")
    (folder / "plan.yaml").write_bytes(plan_to_yaml(plan, GraphIndex(qdq.load(model))).encode())
    (folder / "scales.json").write_bytes(scales_to_json(scales))
    assert read_plan(folder / "plan.yaml") == plan
    assert read_plan(folder / "plan.yaml").key == plan.key
    assert read_scales(folder / "scales.json") == scales


def test_a_plan_file_has_a_block_for_each_node_and_in_it_a_line_for_each_edge() -> None:
    index = GraphIndex(qdq.load(NETWORKS / "digits_cnn.onnx"))
    plan = qdq.plan(NETWORKS / "digits_cnn.onnx")
    text = plan_to_yaml(plan, index)
    assert len([line for line in text.splitlines() if line.startswith("  - {slot: ")]) == len(
        plan.placements
    ) + len(plan.left_float)
    content = yaml.safe_load(text)
    assert content["qdq_plan"] == 2
    positions = [index.by_label[layer["node"]].position for layer in content["layers"]]
    assert positions == sorted(set(positions))
    assert all(layer["op"] == index.by_label[layer["node"]].op for layer in content["layers"])
    assert [edge["slot"] for edge in content["layers"][0]["edges"]] == [0, 1]


# --- explain, help, the library --------------------------------------------------------------------------------------


def test_a_node_is_explained_input_by_input() -> None:
    code, text, _ = cli("explain", NETWORKS / "digits_cnn.onnx", "/stem/stem.0/Conv")
    assert code == 0
    assert "image -> /stem/stem.0/Conv[0]" in text
    assert "quantize (int8-activation): weighted-inputs" in text
    assert "quantize (int8-weight-per-channel(axis=0)): weights-per-channel" in text
    assert "see: https://docs.nvidia.com/" in text
    assert "No rule requests a pair here." in text


def test_a_tensor_is_explained_reader_by_reader() -> None:
    model = NETWORKS / "digits_cnn.onnx"
    proto = onnx.load(model)
    tensor = proto.graph.node[0].output[0]
    readers = [n.name for n in proto.graph.node if tensor in n.input]
    explained = answer("explain", model, tensor)["explanations"]
    assert [e["edge"]["node"] for e in explained] == readers
    assert {e["rule"] for e in explained} == {"no-weighted-outputs"}
    assert {e["decision"] for e in explained} == {"leave in float"}


def test_what_leaving_a_node_in_float_does_is_explained() -> None:
    code, text, _ = cli(
        "explain", NETWORKS / "digits_cnn.onnx", "/head/Gemm", "--leave-float", "/head/*"
    )
    assert code == 0
    assert "leave in float: --leave-float /head/*" in text
    assert "because: The user requested it." in text


def test_an_unknown_name_gets_a_suggestion() -> None:
    code, _, error = cli("explain", NETWORKS / "digits_cnn.onnx", "/head/Gem")
    assert code == 2
    assert "has no node or tensor '/head/Gem'. Did you mean '/head/Gemm'" in error
    code, _, error = cli("plan", NETWORKS / "digits_cnn.onnx", "--leave-float", "/haed/*")
    assert code == 2
    assert "no node is named '/haed/*'" in error


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS)], ids=lambda c: " ".join(("qdq", *c))
)
def test_help_shows_an_example(command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        code, text, error = cli(*command, flag)
        assert (code, error) == (0, "")
        assert "Example:" in text
        assert f"  qdq {' '.join(command)}" in text.split("Example:")[1]


def test_every_public_name_resolves() -> None:
    assert set(qdq.__all__) == set(dir(qdq))
    for name in qdq.__all__:
        assert getattr(qdq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qdq.quantise


def test_the_library_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for method in ("max", "mse", "percentile"):
        result = qdq.quantize(NETWORKS / "digits_plain.onnx", CALIBRATION, method=method)
        qdq.validate(result.source, result.model, data=CALIBRATION)
        qdq.check(result.model)
        qdq.strip(result.model)
    assert capfd.readouterr() == ("", "")


def test_what_quantize_returns_is_what_its_stages_return() -> None:
    model = convolution()
    result = qdq.quantize(model, "noise", method="percentile:99.9")
    plan = qdq.plan(model)
    assert result.plan == plan
    assert result.scales == qdq.calibrate(model, plan, "noise", method="percentile:99.9")
    assert result.model == qdq.apply(model, plan, result.scales)
    assert result.scales.method == "percentile:99.9"


def test_quantize_tells_of_its_plan_and_its_progress() -> None:
    plans: list[Plan] = []
    samples: list[int] = []
    result = qdq.quantize(convolution(), "noise", planned=plans.append, progress=samples.append)
    assert plans == [result.plan]
    assert samples == list(range(1, 9))


def test_records_do_not_change() -> None:
    result = qdq.quantize(convolution(), "noise")
    for record, field in (
        (result, "plan"),
        (result.plan, "model"),
        (result.scales, "method"),
        (result.plan.placements[0], "edge"),
    ):
        with pytest.raises(AttributeError):
            setattr(record, field, None)
    assert msgspec.json.decode(msgspec.json.encode(result.plan), type=Plan) == result.plan


def test_accuracy_of_a_model_against_itself_is_perfect_and_thresholds_are_judged() -> None:
    result = qdq.quantize(NETWORKS / "digits_cnn.onnx", CALIBRATION)
    same = qdq.validate(result.source, result.source, data=CALIBRATION).accuracy
    assert same is not None
    assert same.outputs[0].max_abs == 0.0
    assert same.outputs[0].top1_agreement == 1.0
    validation = qdq.validate(result.source, result.model, data=CALIBRATION)
    assert validation.accuracy is not None
    output = validation.accuracy.outputs[0]
    assert (
        qdq.misses(
            validation, qdq.Thresholds(snr_db=output.snr_db - 1, cosine=0.9, top1_agreement=0.9)
        )
        == ()
    )
    (missed,) = qdq.misses(validation, qdq.Thresholds(snr_db=output.snr_db + 1))
    assert missed.startswith(f"output {output.name!r}: snr_db is ")


def test_the_errors_of_an_output_are_those_of_all_samples_together() -> None:
    result = qdq.quantize(convolution(), "noise")
    rng = np.random.default_rng(3)
    data = [{"x": rng.standard_normal((1, 3, 6, 6)).astype(np.float32)} for _ in range(4)]
    validation = qdq.validate(result.source, result.model, data=data)
    float_outputs = np.concatenate([run(result.source.model, d)[0] for d in data]).astype(
        np.float64
    )
    int8_outputs = np.concatenate([run(result.model, d)[0] for d in data]).astype(np.float64)
    assert validation.accuracy is not None
    (output,) = validation.accuracy.outputs
    assert output.max_abs == pytest.approx(np.abs(float_outputs - int8_outputs).max(), rel=1e-3)
    assert output.mean_abs == pytest.approx(np.abs(float_outputs - int8_outputs).mean(), rel=1e-3)
    assert output.snr_db == pytest.approx(
        10 * np.log10((float_outputs**2).sum() / ((float_outputs - int8_outputs) ** 2).sum()),
        abs=0.05,
    )
    assert output.cosine == pytest.approx(
        (float_outputs * int8_outputs).sum()
        / np.sqrt((float_outputs**2).sum() * (int8_outputs**2).sum()),
        rel=1e-5,
    )
    assert output.top1_agreement is None


def test_quantize_validates_the_model_that_it_wrote_and_not_the_float_one(tmp_path: Path) -> None:
    model, out, data = (
        save(tiny_model(), tmp_path / "model.onnx"),
        tmp_path / "out.onnx",
        samples(tmp_path / "samples"),
    )

    def accuracy(*argv: object) -> Any:
        return json.loads(cli(*argv, "--data", data, "--format", "json")[1])["validation"][
            "accuracy"
        ]

    judged = accuracy("quantize", model, "-o", out, "--validate")
    assert judged == accuracy("validate", model, out)
    assert judged["outputs"][0]["max_abs"] > 0.0
