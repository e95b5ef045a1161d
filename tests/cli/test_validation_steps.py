"""The first and the last lines of `validate` and `sensitivity`: the result, and what to do next."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.cli_runner import run, samples, save, tiny_model
from tests.support.paths import NETWORKS

TARGET = ("--target", "trt:sm80")
DATA = ("--data", "d")

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, its samples, and two quantized models."""
    folder = tmp_path_factory.mktemp("models")
    save(tiny_model(), folder / "m.onnx")
    data = samples(folder / "d")
    base = ("quantize", folder / "m.onnx", "--data", data, *TARGET)
    assert run(*base, "-o", folder / "q.onnx")[0] == 0
    assert run(*base, "-o", folder / "part.onnx", "--leave-float", "gemm")[0] == 0
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("m.onnx", "q.onnx", "part.onnx", "d"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find_result(out: str) -> list[str]:
    """Return the lines of the result, which an output begins with."""
    title, *lines = out.split("\n\n", maxsplit=1)[0].splitlines()
    assert title == "Result"
    return [line.strip() for line in lines]


def find_steps(out: str) -> list[str]:
    """Return the commands that an output ends with."""
    last = out.rsplit("\n\n", maxsplit=1)[-1].splitlines()
    assert all(line.startswith("next: ") and "  # " in line for line in last), out
    return [line.removeprefix("next: ").split("  # ")[0] for line in last]


def test_a_good_model_is_built_next(folder: Path) -> None:
    code, out, _ = run("validate", "m.onnx", "q.onnx", *DATA, *TARGET, "--min-snr", 5)
    assert code == 0
    name, engine, verdict = find_result(out)
    assert name.startswith("q.onnx: ")
    assert name.endswith(" dB signal-to-noise; 100.0% same top class; no threshold missed")
    assert engine.startswith("trt:sm80 (predicted): 2 of 2 weighted layers in INT8; ")
    assert verdict == "verdict: Nothing measured here speaks against shipping"
    build, report = find_steps(out)
    assert build == "trtexec --stronglyTyped --onnx=q.onnx --saveEngine=q.plan"
    words = "--data=d --target=trt:sm80 --min-snr=5.0 --report=q.html"
    assert report == f"qdq validate m.onnx q.onnx {words}"
    assert run(*shlex.split(report)[1:])[0] == 0
    assert (folder / "q.html").exists()


def test_a_missed_threshold_leads_to_the_layers(folder: Path) -> None:
    code, out, _ = run("validate", "m.onnx", "q.onnx", *DATA, *TARGET, "--min-snr", 90)
    assert code == 1
    name, *_, verdict = find_result(out)
    assert name.endswith("; 1 missed")
    assert verdict == "verdict: Do not ship this yet"
    first = find_steps(out)[0]
    assert first == "qdq sensitivity m.onnx q.onnx --data=d"
    assert run(*shlex.split(first)[1:])[0] == 0
    assert "trtexec" not in out


def test_a_layer_in_float_is_counted_and_explained(folder: Path) -> None:
    out = run("validate", "m.onnx", "part.onnx", *DATA, *TARGET)[1]
    assert "1 of 2 weighted layers in INT8, 1 in FP32; " in find_result(out)[1]
    first = find_steps(out)[0]
    assert first == "qdq explain part.onnx gemm"
    assert run(*shlex.split(first)[1:])[0] == 0


def test_a_metric_is_in_the_first_line(folder: Path) -> None:
    out = run("validate", "m.onnx", "q.onnx", *DATA, "--metric", "top1")[1]
    assert find_result(out)[0].startswith("q.onnx: top1 1 (float 1); ")
    assert find_steps(out)[0] == "qdq check q.onnx"


def test_a_float_model_that_is_wrong_about_its_labels_is_named(folder: Path) -> None:
    wrong = folder / "wrong"
    wrong.mkdir()
    session = onnxruntime.InferenceSession("m.onnx")
    for path in sorted((folder / "d").glob("*.npz")):
        x = np.load(path)["x"]
        label = (session.run(None, {"x": x})[0].argmax(1) + 1) % 5
        np.savez(wrong / path.name, x=x, label=label)
    words = ("--data", "wrong", "--metric", "top1", "--report", "r.md")
    out = run("validate", "m.onnx", "q.onnx", *words)[1]
    start = "The float model itself has top1 0 by these labels. If it should be better,"
    assert any(line.startswith(f"warning: {start}") for line in find_result(out))
    assert start in (folder / "r.md").read_text()


def test_without_samples_or_with_noise_the_accuracy_is_unknown(folder: Path) -> None:
    without = run("validate", "m.onnx", "q.onnx", *TARGET)[1]
    assert find_result(without)[0] == "q.onnx: accuracy not measured"
    noise = run("validate", "m.onnx", "q.onnx", "--data", "noise", *TARGET)[1]
    warning = "warning: the data is noise, so the accuracy on real inputs is not known"
    assert warning in find_result(noise)
    for out in (without, noise):
        step = "qdq validate m.onnx q.onnx --data=SAMPLES --target=trt:sm80"
        assert find_steps(out)[0] == step


def test_data_of_the_project_file_is_not_repeated_by_validate(folder: Path) -> None:
    (folder / "qdq.yaml").write_text("data: d\n")
    out = run("validate", "m.onnx", "q.onnx")[1]
    assert find_steps(out)[-1] == "qdq validate m.onnx q.onnx --report=q.html"


def test_json_and_quiet_have_no_next_commands(folder: Path) -> None:
    for words in (("--format", "json"), ("-q",)):
        out = run("validate", "m.onnx", "q.onnx", *DATA, *words)[1]
        assert "next: " not in out


@needs_compiler
def test_what_the_compiler_refuses_is_left_in_float_next(folder: Path) -> None:
    save(onnx.load(NETWORKS / "digits_cnn.onnx"), folder / "net.onnx")
    data = ("--data", NETWORKS / "digits-calibration.npz")
    run(
        "quantize", "net.onnx", "-o", "net.q.onnx", *data, "--samples", 4, "--leave-float", "*/Gemm"
    )
    words = (*data, "--samples", 4, "--target", "rtx:sm75")
    code, out, _ = run("validate", "net.onnx", "net.q.onnx", *words)
    assert code == 1
    assert find_result(out)[1] == "rtx:sm75 (compiled): does not build"
    first = find_steps(out)[0]
    assert first.startswith("qdq quantize net.onnx -o net.q.builds.onnx --data=")
    assert first.endswith(" --target=rtx:sm75 --until-it-builds")
    assert run(*shlex.split(first)[1:])[0] == 0


# --- sensitivity -----------------------------------------------------------------------------------------------------


def test_sensitivity_names_the_worst_layer_first(folder: Path) -> None:
    code, out, _ = run("sensitivity", "m.onnx", *DATA, *TARGET)
    assert code == 0
    ratio, worst = find_result(out)
    assert ratio.startswith("m.onnx: ")
    assert worst.startswith("the worst layer is ")
    leave, explain = find_steps(out)
    node = explain.split()[3]
    assert worst.startswith(f"the worst layer is {node}: ")
    assert leave == (
        f"qdq quantize m.onnx -o m.partial.onnx --data=d --target=trt:sm80 --leave-float={node}"
    )
    for step in (leave, explain):
        assert run(*shlex.split(step)[1:])[0] == 0


def test_sensitivity_of_a_quantized_model_names_the_largest_fall(folder: Path) -> None:
    out = run("sensitivity", "m.onnx", "q.onnx", *DATA)[1]
    fall = find_result(out)[-1]
    assert fall.startswith("the ratio falls most at ")
    node = fall.removeprefix("the ratio falls most at ").split(",")[0]
    assert find_steps(out)[-1] == f"qdq explain q.onnx {node}"


def test_the_noise_of_fp16_has_a_result_and_a_report(folder: Path) -> None:
    words = ("sensitivity", "m.onnx", *DATA, "--float", "fp16", "--report", "f.html")
    code, out, _ = run(*words, "--report", "f.md")
    assert code == 0
    ratio, worst = find_result(out)
    assert " dB with all nodes in FP16, " in ratio
    assert worst.startswith("worst of those measured: ")
    (step,) = find_steps(out)
    assert step == "qdq cast m.onnx -o m.fp16.onnx --to=fp16 --data=d"
    assert run(*shlex.split(step)[1:])[0] == 0
    page = (folder / "f.html").read_text()
    assert "Noise with one node alone in FP16" in page
    assert "✅ **The signal-to-noise ratio is " in (folder / "f.md").read_text()
