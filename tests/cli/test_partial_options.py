"""`--guard`, budgets and the rule file of `qdq quantize` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.support.cli_runner import refused, run
from tests.support.graphs import run as run_model
from tests.support.outlier_models import BAD, outlier_model, outlier_samples, write_outlier_inputs


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: m.onnx and d.npy."""
    monkeypatch.chdir(tmp_path)
    write_outlier_inputs(tmp_path)
    return tmp_path


def quantize(*more: object, data: str = "d.npy") -> tuple[int, str, str]:
    """Run `qdq quantize` on the planted network, without equalization."""
    argv = ("quantize", "m.onnx", "-o", "q.onnx", "--data", data, "--force", "--recover", "off")
    return run(*argv, *more)


def quantize_to_json(*more: object) -> dict[str, object]:
    """Return the record about the guard or the budget."""
    _, out, _ = quantize("--format", "json", *more)
    partial = json.loads(out)["partial"]
    assert isinstance(partial, dict)
    return partial


def test_the_guard_names_the_layer_in_text_and_json(folder: Path) -> None:
    code, out, err = quantize("--guard", "1.5%")
    assert (code, err) == (0, "")
    assert "signal-to-noise ratio at the outputs over 6 calibration samples" in out
    (row,) = [line for line in out.splitlines() if line.startswith(f"  {BAD} ")]
    assert row.endswith(" dB")
    assert "no findings" in out
    partial = quantize_to_json("--guard", "1.5%")
    assert [layer["node"] for layer in partial["sensitive"]] == [BAD]  # type: ignore[attr-defined]
    assert run("check", "q.onnx") == (0, "q.onnx: no findings\n", "")


def test_strip_and_repair_through_files(folder: Path) -> None:
    """A repaired model names other ranges, and is the same from then on."""
    code, out, _ = quantize("--guard", "1.5%")
    assert "sensitive            leave in float  2" in out
    for before, after in (("q.onnx", "again.onnx"), ("again.onnx", "last.onnx")):
        code, out, _ = run("quantize", before, "-o", after, "--data", "d.npy")
        assert code == 0
        assert "8 quantized edges, then 8: the same pairs" in out
        assert "sensitive            leave in float  2" in out
    assert onnx.load("again.onnx").graph == onnx.load("q.onnx").graph
    assert (folder / "last.onnx").read_bytes() == (folder / "again.onnx").read_bytes()
    assert run("strip", "q.onnx", "-o", "back.onnx")[0] == 0
    expected = onnx.load("m.onnx").SerializeToString(deterministic=True)
    assert (folder / "back.onnx").read_bytes() == expected


def test_off_measures_nothing(folder: Path) -> None:
    code, out, _ = quantize("--guard", "off")
    assert code == 0
    assert "signal-to-noise" not in out
    assert not (folder / "q.sensitive.yaml").exists()


def test_the_guard_writes_no_rule_file(folder: Path) -> None:
    assert quantize()[0] == 0
    assert not (folder / "q.sensitive.yaml").exists()


def test_a_budget_that_is_reached_writes_a_rule_file(folder: Path) -> None:
    code, out, err = quantize("--min-snr", "30dB")
    assert (code, err) == (0, "")
    assert "work in float" in out
    assert "q.sensitive.yaml" in out
    before = (folder / "q.onnx").read_bytes()
    rules = ("--rules", "tensorrt", "--rules", "q.sensitive.yaml")
    code, _, err = run(
        "quantize",
        "m.onnx",
        "-o",
        "r.onnx",
        "--data",
        "d.npy",
        "--guard",
        "off",
        "--recover",
        "off",
        *rules,
    )
    assert (code, err) == (0, "")
    first, second = onnx.load_from_string(before), onnx.load("r.onnx")
    assert first.graph.node != []
    feed = {"x": outlier_samples(1)}
    assert (run_model(first, feed)[0] == run_model(second, feed)[0]).all()


def test_a_budget_that_is_missed_is_exit_code_1_and_a_line(folder: Path) -> None:
    code, out, _ = quantize("--min-snr", "90dB", "--keep-float", "2%")
    assert code == 1
    assert "the budget was not reached: min-snr 90 dB, keep-float 0.02" in out
    assert (folder / "q.onnx").exists()


def test_a_share_and_the_way_of_yolov6(folder: Path) -> None:
    partial = quantize_to_json("--keep-float", "1.5%")
    assert float(str(partial["work"])) <= 0.015
    partial = quantize_to_json("--float-first", "2")
    assert len(partial["sensitive"]) == 2  # type: ignore[arg-type]
    assert partial["goal"] == "first 2"


def test_a_drop_of_the_users_metric(folder: Path) -> None:
    (folder / "metric.py").write_text(
        "import numpy as np\n"
        "def metric(outputs, sample, float_outputs):\n"
        "    return 1 - float(np.abs(outputs['y'] - float_outputs['y']).mean())\n"
    )
    code, out, err = quantize("--max-drop", "0.02", "--metric", "metric.py")
    assert (code, err) == (0, "")
    assert "metric: float 1," in out
    assert (folder / "q.sensitive.yaml").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--guard", "3"), "--guard: '3' is no share. Pass a percentage such as 5% or off."),
        (("--guard", "300%"), "--guard: '300%' is no share. Pass a percentage such as 5% or off."),
        (("--guard", "-1%"), "--guard: '-1%' is no share. Pass a percentage such as 5% or off."),
        (("--keep-float", "off"), "--keep-float: 'off' is no share. Pass a percentage such as 5%."),
        (("--keep-float", "nan%"), "--keep-float: 'nan%' is no share."),
        (("--float-first", "0"), "--float-first"),
        (("--float-first", "x"), "--float-first"),
        (("--min-snr", "high"), "--min-snr"),
        (("--float-first", "2", "--min-snr", "20dB"), "--float-first takes a number of layers"),
        (("--max-drop", "1%"), "--max-drop judges a metric's score. Pass --metric too."),
        (("--guard", "3%", "--keep-float", "3%"), "--guard and a budget are two ways to choose."),
    ],
)
def test_wrong_values_are_one_line(folder: Path, more: tuple[str, ...], message: str) -> None:
    error = refused(folder, "quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npy", *more)
    assert message in error


def test_a_budget_without_data_is_one_line(folder: Path) -> None:
    assert quantize("--guard", "off")[0] == 0
    message = refused(folder, "quantize", "q.onnx", "-o", "r.onnx", "--min-snr", "20dB")
    assert "a budget is measured on samples. Pass --data or --images." in message


def test_a_rule_file_that_exists_is_not_overwritten(folder: Path) -> None:
    (folder / "q.sensitive.yaml").write_text("mine")
    message = refused(
        folder, "quantize", "m.onnx", "-o", "q.onnx", "--data", "d.npy", "--min-snr", "20dB"
    )
    assert "q.sensitive.yaml" in message


def test_another_exporters_names_are_listed(folder: Path) -> None:
    assert quantize("--float-first", "2")[0] == 0
    other = outlier_model()
    for number, node in enumerate(other.graph.node):
        node.name = f"/other/{number}"
    onnx.save(other, "other.onnx")
    rules = ("--rules", "tensorrt", "--rules", "q.sensitive.yaml", "--guard", "off")
    message = refused(folder, "quantize", "other.onnx", "-o", "o.onnx", "--data", "d.npy", *rules)
    assert (
        f"no nodes are named {BAD!r}, 'head'. Correct them, or pass --allow-unmatched." in message
    )


def test_a_bad_model_is_warned_about_with_the_command_to_run(folder: Path) -> None:
    code, out, _ = quantize("--guard", "0.1%")
    assert code == 0
    assert "warning: below 15 dB the outputs differ much from those of the float model" in out
    assert f"the worst layers in INT8 are {BAD} (" in out
    assert "qdq sensitivity MODEL --data DATA" in out
