"""Metrics by name and of the user's functions: scores by hand, and what bad ones get."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qdq.errors import MetricError, QdqError, UsageError
from qdq.metrics.metric import MetricItem
from qdq.metrics.metric_files import load_metric, to_metric
from tests.support.paths import ROOT

Outputs = dict[str, np.ndarray]


def item(value: float, label: float = 0, name: str = "sample 0") -> MetricItem:
    """Return an item of one output `y`, zero in the float model, and an array `label`."""
    return MetricItem(
        outputs={"y": np.array([value], np.float32)},
        sample={"x": np.zeros(1), "label": np.array([label])},
        float_outputs={"y": np.array([0.0], np.float32)},
        name=name,
    )


ITEMS = [item(1, 10, "first"), item(2, 20, "second"), item(6, 30, "third")]

SOURCE = """
import numpy as np

def metric(outputs, sample):
    return -1

def per_item(outputs, sample):
    return outputs["y"][0] + sample["label"][0]

def with_float(sample, outputs, float_outputs, scale=2.0):
    return scale * (outputs["y"] - float_outputs["y"])

def at_once(all_outputs, all_samples):
    assert isinstance(all_outputs, list) and isinstance(all_samples, list)
    return max(o["y"][0] for o in all_outputs) / len(all_samples)

def all_three(all_outputs, all_samples, all_float_outputs):
    return np.float32(sum(o["y"][0] - f["y"][0] for o, f in zip(all_outputs, all_float_outputs)))

def prints(outputs, sample):
    print("noise on standard output")
    sample["x"] += 1
    del sample["label"]
    return True
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file of metrics."""
    path = tmp_path / "metrics.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("per_item", (11 + 22 + 36) / 3),
        ("with_float", 2.0 * (1 + 2 + 6) / 3),
        ("at_once", 6 / 3),
        ("all_three", 9),
        ("prints", 1),
    ],
)
def test_a_function_of_a_file_scores_each_item_or_all(
    file: Path, function: str, expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = load_metric(f"{file}:{function}")

    assert (metric.name, metric.scores_float_model) == (f"metrics.py:{function}", True)
    assert metric.score(ITEMS) == pytest.approx(expected)
    assert metric.score(iter(ITEMS)) == pytest.approx(expected)
    assert capsys.readouterr().out == ""
    assert all("label" in item.sample for item in ITEMS)


def test_without_a_name_the_function_metric_is_taken(file: Path) -> None:
    assert load_metric(str(file)).score(ITEMS) == -1


def test_a_file_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_metric.py").write_text("VALUE = 3\n")
    (tmp_path / "m.py").write_text(
        "from neighbour_of_metric import VALUE\ndef f(outputs, sample):\n    return VALUE\n"
    )

    assert load_metric(f"{tmp_path / 'm.py'}:f").score(ITEMS) == 3


def test_the_library_takes_functions_names_and_metrics() -> None:
    def accuracy(outputs: Outputs, sample: Outputs) -> float:
        return float(outputs["y"][0])

    metric = to_metric(accuracy)

    assert (metric.name, metric.score(ITEMS)) == ("accuracy", 3.0)
    assert to_metric(metric) is metric
    assert to_metric("top1").name == "top1"
    assert to_metric(lambda all_outputs, all_samples: len(all_samples)).score(ITEMS) == 3
    with pytest.raises(UsageError, match=r"metric: the argument is of type int\. Pass a name"):
        to_metric(3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top5", "unknown metric 'top5'. Did you mean 'top1'? Pass snr, top1, top1:OUTPUT, or a"),
        ("", "unknown metric ''"),
        ("top1:", "unknown metric 'top1:'"),
        ("absent.py:f", "absent.py: there is no such file of a metric"),
    ],
)
def test_an_unknown_metric_is_answered_with_those_there_are(text: str, expected: str) -> None:
    with pytest.raises(QdqError) as error:
        load_metric(text)

    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "the script has no function f(). Define it, or pass"),
        ("f = 3", "the script has no function f()"),
        ("def f(:", "the script failed: SyntaxError: "),
        ("import absent_module", "the script failed: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "the script failed: SystemExit: 3. Fix the script."),
    ],
)
def test_a_file_without_the_function_is_named(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "m.py"
    path.write_text(content)

    with pytest.raises(MetricError) as error:
        load_metric(f"{path}:f")

    assert str(error.value).startswith(f"{path}: {expected}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "parameters",
    ["", "outputs", "a, b", "outputs, sample, threshold", "all_outputs, sample", "*arguments",
     "outputs, sample, /", "**arguments"],
)  # fmt: skip
def test_other_parameters_are_refused(tmp_path: Path, parameters: str) -> None:
    path = tmp_path / "m.py"
    path.write_text(f"def f({parameters}):\n    return 1\n")

    with pytest.raises(MetricError) as error:
        load_metric(f"{path}:f")

    assert str(error.value).startswith(f"{path}:f: the function takes ({parameters}). ")
    assert "Write it as f(outputs, sample), which scores one sample" in str(error.value)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return float('nan')", "the function returned nan for second. Return a finite number."),
        ("return float('inf')", "the function returned inf for second"),
        ("return None", "the function returned None for second"),
        ("return 'high'", "the function returned a value of type str for second"),
        ("return np.zeros(3)", "the function returned an array of shape [3] for second"),
        ("return np.array([np.nan])", "the function returned an array of nan for second"),
        ("return [1, 2]", "the function returned a value of type list for second"),
        (
            "return sample['lable']",
            "the function failed for second in line 5: KeyError: 'lable'. Fix the function.",
        ),
        ("raise ValueError('two\\nlines')", "failed for second in line 5: ValueError: two. Fix"),
        ("raise SystemExit(2)", "the function failed for second in line 5: SystemExit: 2"),
    ],
)
def test_a_bad_result_is_named_with_file_function_and_sample(
    tmp_path: Path, body: str, expected: str
) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        "import numpy as np\ndef f(outputs, sample):\n    if outputs['y'][0] != 2:\n"
        f"        return 1\n    {body}\n"
    )

    with pytest.raises(MetricError) as error:
        load_metric(f"{path}:f").score(ITEMS)

    assert str(error.value).startswith(f"{path}:f: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_result_for_all_samples_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("def f(all_outputs, all_samples):\n    return None\n")

    with pytest.raises(MetricError, match="the function returned None for all 3 samples"):
        load_metric(f"{path}:f").score(ITEMS)


def _one(outputs: Outputs, sample: Outputs) -> float:
    return 1.0


def _all(all_outputs: list[Outputs], all_samples: list[Outputs]) -> float:
    return 1.0


@pytest.mark.parametrize("metric", ["snr", "top1", _one, _all])
def test_no_items_are_refused(metric: str | Callable[..., Any]) -> None:
    with pytest.raises(MetricError, match=r"there are no samples to score\. Pass data\."):
        to_metric(metric).score([])


def test_the_functions_of_the_documentation_score_items(tmp_path: Path) -> None:
    code = (ROOT / "docs" / "metrics.md").read_text().split('title="metrics.py"\n')[1]
    code = code.split("```", maxsplit=1)[0]
    (tmp_path / "metrics.py").write_text(code)
    outputs = {"logits": np.eye(3), "embedding": np.eye(3), "mask": np.full(2, 0.75)}
    sample = {"label": np.array([0, 1, 1]), "group": np.zeros(3)}
    items = [MetricItem(outputs, sample, {"mask": np.ones(2)}, "sample")] * 2

    scores = {
        name: load_metric(f"{tmp_path / 'metrics.py'}:{name}").score(items)
        for name in ("accuracy", "recall", "closeness")
    }

    assert scores == {"accuracy": pytest.approx(2 / 3), "recall": 1.0, "closeness": -0.25}
