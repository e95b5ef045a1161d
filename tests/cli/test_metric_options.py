"""`--metric`, its thresholds and `--labels` on the command line, in the project file and library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import qdq
from tests.support.cli_runner import SHAPE, refused, run, save, tiny_model
from tests.support.graphs import build, node, noise
from tests.support.graphs import run as run_model
from tests.support.pictures import scene

COUNT = 8
METRICS = """
import numpy as np

def half(outputs, sample):
    return 0.5

def mean_label(all_outputs, all_samples):
    return float(np.mean([s["label"] for s in all_samples]))

def error(outputs, sample, float_outputs):
    return -float(np.abs(outputs["y"] - float_outputs["y"]).mean())

def fails(outputs, sample):
    return sample["lable"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current folder: a model, its quantized copy, labelled data, and metrics.

    A quarter of the labels are another class than the float model's.
    """
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).standard_normal((COUNT, *SHAPE)).astype(np.float32)
    model = save(tiny_model(), tmp_path / "m.onnx")
    labels = run_model(tiny_model(), {"x": x})[0].argmax(1)
    labels[:2] = (labels[:2] + 1) % 5
    np.savez(tmp_path / "d.npz", x=x, label=labels)
    np.savez(tmp_path / "plain.npz", x=x)
    quantized = qdq.quantize(model, str(tmp_path / "plain.npz"))
    qdq.save(quantized.model, quantized.source, tmp_path / "q.onnx")
    (tmp_path / "metrics.py").write_text(METRICS)
    return tmp_path


def validate(*more: object) -> tuple[int, str, str]:
    return run("validate", "m.onnx", "q.onnx", *more)


def scores(*more: object) -> dict[str, object]:
    """Return the record of the metric in the JSON of `qdq validate`."""
    code, text, err = validate(*more, "--format", "json")
    assert code == 0, err
    record: dict[str, object] = json.loads(text)["validation"]["accuracy"]["metric"]
    return record


def test_top1_is_the_true_accuracy_with_labels_and_the_agreement_without(folder: Path) -> None:
    top1 = ("--metric", "top1")

    assert scores("--data", "d.npz", *top1) == {
        "name": "top1",
        "basis": "labels",
        "quantized": 0.75,
        "float_model": 0.75,
    }
    assert scores("--data", "d.npz", "--batch", 3, *top1)["quantized"] == 0.75
    assert scores("--data", "plain.npz", *top1) == {
        "name": "top1",
        "basis": "float outputs",
        "quantized": 1.0,
        "float_model": 1.0,
    }


def test_snr_is_the_ratio_of_the_output_and_has_no_score_of_the_float_model(folder: Path) -> None:
    code, text, _ = validate("--data", "plain.npz", "--metric", "snr", "--format", "json")
    accuracy = json.loads(text)["validation"]["accuracy"]

    assert code == 0
    assert accuracy["metric"]["float_model"] is None
    assert accuracy["metric"]["quantized"] == pytest.approx(accuracy["outputs"][0]["snr_db"])


def test_a_function_gets_the_labels_and_the_float_outputs(folder: Path) -> None:
    labels = np.load("d.npz")["label"]

    mean_label = scores("--data", "d.npz", "--metric", "metrics.py:mean_label")
    error = scores("--data", "d.npz", "--metric", "metrics.py:error")

    assert mean_label["name"] == "metrics.py:mean_label"
    assert mean_label["quantized"] == pytest.approx(labels.mean())
    assert error["float_model"] == 0.0
    assert float(str(error["quantized"])) < 0


def test_the_text_has_both_scores_and_the_drop(folder: Path) -> None:
    _, with_labels, _ = validate("--data", "d.npz", "--metric", "top1")
    _, ratio, _ = validate("--data", "d.npz", "--metric", "snr")
    _, none, _ = validate("--data", "d.npz")

    assert "  metric top1 by labels: 0.75, float 0.75, drop 0\n" in with_labels
    assert "  metric snr by float outputs: " in ratio
    assert "metric" not in none


@pytest.mark.parametrize(
    ("thresholds", "misses"),
    [
        (["--min-metric", 0.75], []),
        (["--min-metric", 0.8], ["metric top1 is 0.75, but at least 0.8 is required"]),
        (["--max-drop", "0"], []),
        (["--max-drop", "0.5%", "--min-metric", 0.5], []),
    ],
)
def test_the_least_score_is_judged(
    folder: Path, thresholds: list[object], misses: list[str]
) -> None:
    code, text, _ = validate("--data", "d.npz", "--metric", "top1", *thresholds, "--format", "json")

    assert (code, json.loads(text)["misses"]) == (1 if misses else 0, misses)


def test_the_drop_is_judged_as_an_amount_and_as_a_share(folder: Path) -> None:
    """The quantized model scores 0.5 by design, the float model 1."""
    (folder / "drop.py").write_text(
        "def f(outputs, sample, float_outputs):\n"
        "    return 1 if outputs['y'] is float_outputs['y'] else 0.5\n"
        "def g(outputs, sample, float_outputs):\n"
        "    return 10 * f(outputs, sample, float_outputs)\n"
    )
    for function, drop, expected in (
        ("f", "0.5", []),
        ("f", "50%", []),
        (
            "f",
            "0.1",
            ["metric drop.py:f is 0.5, but a drop of 0.1 from 1 of the float model allows 0.9"],
        ),
        (
            "g",
            "10%",
            ["metric drop.py:g is 5, but a drop of 10% from 10 of the float model allows 9"],
        ),
        ("g", "5", []),
    ):
        options = ("--data", "d.npz", "--metric", f"drop.py:{function}", "--max-drop", drop)
        code, text, _ = validate(*options, "--format", "json")
        assert (code, json.loads(text)["misses"]) == (1 if expected else 0, expected)


def test_quantize_validates_by_the_metric(folder: Path) -> None:
    quantize = ("quantize", "m.onnx", "-o", "out.onnx", "--data", "d.npz", "--force")

    code, text, _ = run(*quantize, "--validate", "--metric", "top1", "--min-metric", 0.9)
    passing = run(*quantize, "--validate", "--metric", "metrics.py:half", "--max-drop", "1%")

    assert code == 1
    assert "metric top1 is 0.75, but at least 0.9 is required" in text
    assert passing[0] == 0
    again = ("quantize", "q.onnx", "-o", "out.onnx", "--data", "d.npz", "--force", "--validate")
    code, text, _ = run(*again, "--metric", "top1", "--format", "json")
    assert code == 0
    assert json.loads(text)["original_accuracy"]["metric"]["quantized"] == 0.75


def test_the_project_file_holds_metric_labels_and_thresholds(folder: Path) -> None:
    (folder / "work").mkdir()
    (folder / "qdq.yaml").write_text(
        "data: d.npz\nmetric: metrics.py:half\nthresholds: {metric: 0.75, max_drop: 0.5%}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "work")
        code, text, err = run("validate", "../m.onnx", "../q.onnx")
        other = run("validate", "../m.onnx", "../q.onnx", "--metric", "top1")
        engines = run("validate", "../m.onnx", "../q.onnx", "--metric", "snr", "--max-drop", "1")
    assert (code, err) == (1, "project file ../qdq.yaml: data, metric, thresholds\n")
    assert "metric metrics.py:half is 0.5, but at least 0.75 is required" in text
    assert other[0] == 0
    assert (engines[0], "metric snr: it measures the distance" in engines[2]) == (2, True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("metric: top5\n", "qdq.yaml:1: 'metric': unknown metric 'top5'. Did you mean 'top1'?"),
        ("metric: 3\n", "qdq.yaml:1: 'metric': the value is 3. Write a text."),
        ("labels: [a]\n", "qdq.yaml:1: 'labels': the value is ['a']. Write a text."),
        (
            "thresholds:\n  max_drop: half\n",
            "qdq.yaml:2: 'max_drop': the value: 'half' is no drop. Pass a share",
        ),
        ("thresholds:\n  metric: high\n", "qdq.yaml:2: 'metric': the value is 'high'. Write a num"),
    ],
)
def test_mistakes_in_the_project_file_are_named(folder: Path, content: str, expected: str) -> None:
    (folder / "qdq.yaml").write_text(content)

    assert expected in refused(folder, "validate", "m.onnx", "q.onnx", "--data", "d.npz")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--data d.npz --metric top5", "unknown metric 'top5'. Did you mean 'top1'?"),
        ("--target trt:sm80 --metric top1", "--metric scores samples. Pass --data or --images."),
        ("--data d.npz --min-metric 1", "--min-metric judges a metric's score. Pass --metric too."),
        ("--data d.npz --max-drop 1%", "--max-drop judges a metric's score. Pass --metric too."),
        ("--data d.npz --metric top1 --max-drop half", "--max-drop: 'half' is no drop. Pass a"),
        ("--data d.npz --metric snr --max-drop 1%", "metric snr: it measures the distance from"),
        ("--data d.npz --metric metrics.py:absent", "metrics.py: the script has no function ab"),
        (
            "--data d.npz --metric metrics.py:fails",
            "metrics.py:fails: the function failed for d.npz sample 0 in line 14: KeyError: 'la",
        ),
        ("--data plain.npz --metric metrics.py:mean_label", "mean_label: the function failed for"),
        ("--data d.npz --labels l.csv", "--labels holds the classes of pictures. Pass --images"),
        ("--data d.npz --metric metrics.py:half --report metrics.py", "metrics.py: the suffix"),
    ],
)
def test_a_metric_that_cannot_be_used_is_answered_in_one_line(
    folder: Path, options: str, expected: str
) -> None:
    assert expected in refused(folder, "validate", "m.onnx", "q.onnx", *options.split())


def test_quantize_without_a_validation_refuses_the_metric(folder: Path) -> None:
    quantize = ("quantize", "m.onnx", "-o", "out.onnx", "--data", "d.npz")

    for option, value in (("--metric", "top1"), ("--min-metric", 1)):
        message = refused(folder, *quantize, option, value)
        assert message == f"qdq: {option} applies to a validation. Pass --validate too.\n"
    message = refused(folder, *quantize, "--max-drop", "1%")
    assert message == "qdq: --max-drop judges a metric's score. Pass --metric too.\n"


def test_no_output_replaces_the_file_of_a_metric_or_of_labels(folder: Path) -> None:
    (folder / "metrics.py").rename("metrics.json")
    (folder / "metrics.py").symlink_to("metrics.json")
    (folder / "l.json").write_text("{}")
    (folder / "p").mkdir()
    Image.fromarray(scene(8, 8)).save(folder / "p" / "0.png")
    images = ("--images", "p", "--preprocess", "imagenet", "--labels", "l.json")
    for options in (
        ("--data", "d.npz", "--metric", "metrics.py:half", "--report", "metrics.json"),
        (*images, "--report", "l.json"),
    ):
        message = refused(folder, "validate", "m.onnx", "q.onnx", *options, "--force")
        assert "the output is the input, and inputs are never changed" in message


def picture_classifier(classes: int) -> onnx.ModelProto:
    """Return Conv, GlobalAveragePool, Flatten over `images` with so many classes."""
    return build(
        [
            node("Conv", ["images", "w"], "c"),
            node("GlobalAveragePool", ["c"], "p"),
            node("Flatten", ["p"], "y"),
        ],
        {"images": ["n", 3, 8, 8]},
        ["y"],
        {"w": noise(classes, 3, 3, 3)},
    )


def test_pictures_by_class_give_the_true_accuracy(folder: Path) -> None:
    """The labels of a file are the classes of the float model, so that it has accuracy 1."""
    save(picture_classifier(2), folder / "m.onnx")
    paths = [folder / "p" / name for name in ("b/0.png", "b/1.png", "a/2.png", "a/3.png")]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene(8, 8, seed=i)).save(path)
    (folder / "how.yaml").write_text("fit: stretch\nscale: 1/255\n")
    images = ("--images", "p", "--preprocess", "how.yaml", "--metric", "top1")
    pixels = [np.asarray(Image.open(path), np.float32) / 255 for path in paths]
    feed = {"images": np.stack(pixels).transpose(0, 3, 1, 2)}
    classes = run_model(picture_classifier(2), feed)[0].argmax(1)
    lines = [f"{path.name},{number}" for path, number in zip(paths, classes, strict=True)]
    (folder / "l.csv").write_text("\n".join(lines))
    by_folder = np.mean(classes == [1, 1, 0, 0])

    code, _, err = run("quantize", "m.onnx", "-o", "q.onnx", *images[:4], "--force")
    assert code == 0, err

    assert scores(*images)["float_model"] == by_folder
    assert scores(*images, "--batch", 3)["float_model"] == by_folder
    assert scores(*images, "--labels", "l.csv")["float_model"] == 1.0
    assert scores(*images, "--labels", "off")["basis"] == "float outputs"
    (folder / "qdq.yaml").write_text("images: p\npreprocess: how.yaml\nlabels: l.csv\n")
    assert scores("--metric", "top1")["float_model"] == 1.0
    assert run("calibrate", "m.onnx", "m.onnx", "-o", "s.json", "--labels", "l.csv")[0] == 2


def test_class_folders_of_another_number_than_classes_are_refused(folder: Path) -> None:
    save(picture_classifier(5), folder / "m.onnx")
    for name in ("a", "b"):
        (folder / "p" / name).mkdir(parents=True)
        Image.fromarray(scene(8, 8)).save(folder / "p" / name / "0.png")
    (folder / "how.yaml").write_text("fit: stretch\n")
    images = ("--images", "p", "--preprocess", "how.yaml")
    assert run("quantize", "m.onnx", "-o", "q.onnx", *images, "--force")[0] == 0

    message = refused(folder, "validate", "m.onnx", "q.onnx", *images, "--metric", "top1")

    assert message == (
        "qdq: p sample 0: there are 2 class folders, but output 'y' has 5 classes, so the position "
        "of a folder is no class. Pass --labels FILE, or --labels off for the agreement with the "
        "float model.\n"
    )


def test_the_library_takes_a_function_and_judges_its_score(folder: Path) -> None:
    def score(outputs: dict[str, np.ndarray], sample: dict[str, np.ndarray]) -> float:
        return float(np.mean(outputs["y"].argmax(1) == sample["label"]))

    by_function = qdq.validate("m.onnx", "q.onnx", data="d.npz", metric=score)
    by_name = qdq.validate("m.onnx", "q.onnx", data="d.npz", metric="top1")

    assert by_function.accuracy is not None
    assert by_name.accuracy is not None
    assert by_function.accuracy.metric.quantized == by_name.accuracy.metric.quantized == 0.75
    assert by_function.accuracy.metric.drop == 0.0
    assert qdq.misses(by_name, qdq.Thresholds(metric=0.75, max_drop=0.1)) == ()
    assert qdq.misses(by_name, qdq.Thresholds(metric=0.9)) != ()
    by_ratio = qdq.validate("m.onnx", "q.onnx", data="d.npz", metric="snr")
    with pytest.raises(qdq.QdqError, match="metric snr: it measures the distance"):
        qdq.misses(by_ratio, qdq.Thresholds(max_drop="1%"))
    with pytest.raises(qdq.QdqError, match="metric: the argument is of type int"):
        qdq.validate("m.onnx", "q.onnx", metric=3)
    with pytest.raises(qdq.QdqError, match=r"Thresholds\.max_drop: 'half' is no drop"):
        qdq.Thresholds(max_drop="half")
