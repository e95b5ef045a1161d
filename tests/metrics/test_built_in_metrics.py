"""The metrics top1 and snr against computations by hand, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdq.errors import MetricError
from qdq.metrics.metric import MetricItem
from qdq.metrics.metric_files import load_metric

FLOAT32 = np.float32


def one_hot(classes: list[int], count: int) -> np.ndarray:
    """Return class scores whose largest entries are some classes."""
    scores = np.zeros((len(classes), count), FLOAT32)
    scores[np.arange(len(classes)), classes] = 1
    return scores


def item(
    outputs: dict[str, Any], float_outputs: dict[str, Any] | None = None, **sample: Any
) -> MetricItem:
    arrays = {name: np.asarray(values) for name, values in sample.items()}
    return MetricItem(outputs, arrays, outputs if float_outputs is None else float_outputs, "s 0")


@pytest.mark.parametrize("name", ["label", "labels"])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1), (2, 1, 3), (2, 1, 1, 3)])
def test_top1_with_labels_is_the_accuracy_over_all_rows(name: str, shape: tuple[int, ...]) -> None:
    """A batch of two and one of four count by their entries."""
    items = [
        item({"y": one_hot([0, 2], 3).reshape(shape)}, **{name: [0, 1]}),
        item({"y": one_hot([1, 1, 1, 1], 3)}, **{name: [1.0, 1.0, 0.0, 1.0]}),
    ]

    assert load_metric("top1").score(items) == pytest.approx(4 / 6)


def test_top1_without_labels_is_the_agreement_with_the_float_model() -> None:
    positions = np.stack([one_hot([0, 1, 2], 3), one_hot([2, 2, 2], 3)])
    other = np.stack([one_hot([0, 1, 1], 3), one_hot([2, 2, 0], 3)])

    score = load_metric("top1").start()
    score.add(item({"y": other}, {"y": positions}))
    score.add(item({"y": other[:, :2]}, {"y": positions}))

    assert score.basis == "float outputs"
    assert score.result() == pytest.approx(4 / 12)
    assert load_metric("top1").score([item({"y": positions})]) == 1.0


def test_top1_selects_the_output_of_class_scores_or_the_named_one() -> None:
    outputs = {
        "boxes": np.zeros((2, 4, 5, 6), FLOAT32),
        "count": np.zeros((2, 3), np.int64),
        "score": np.zeros((2, 1), FLOAT32),
        "y": one_hot([0, 2], 3),
    }
    assert load_metric("top1").score([item(outputs, label=[0, 1])]) == 0.5
    several = {**outputs, "z:1": one_hot([0, 1], 5)}
    assert load_metric("top1:z:1").score([item(several, label=[0, 1])]) == 1.0
    with pytest.raises(
        MetricError, match=r"several outputs look like .*'y' float32\[2, 3\], 'z:1'"
    ):
        load_metric("top1").score([item(several, label=[0, 1])])


@pytest.mark.parametrize(
    ("metric", "outputs", "sample", "expected"),
    [
        ("top1", {"y": np.zeros((2, 1), FLOAT32)}, {}, "metric top1: no output looks like class"),
        ("top1", {"y": np.zeros(3, FLOAT32)}, {}, "no output looks like class scores"),
        ("top1", {"y": [np.zeros(3)]}, {}, "no output looks like class scores"),
        ("top1:z", {"y": one_hot([0], 3)}, {}, "metric top1:z: there is no output 'z' for s 0"),
        ("top1:y", {"y": np.zeros((2, 1), FLOAT32)}, {}, "output 'y' float32[2, 1] holds no class"),
        ("top1", {"y": one_hot([0], 3)}, {"label": [0, 1]}, "array 'label' holds 2 classes, but"),
        ("top1", {"y": one_hot([0], 3)}, {"label": [3]}, "holds class 3, but output 'y' has the"),
        ("top1", {"y": one_hot([0], 3)}, {"label": [-1]}, "holds class -1"),
        ("top1", {"y": one_hot([0], 3)}, {"label": [0.5]}, "holds no class numbers"),
        ("top1", {"y": one_hot([0], 3)}, {"labels": ["a"]}, "array 'labels' holds no class num"),
        (
            "top1",
            {"y": one_hot([0], 3)},
            {"label": [0], "class_names": ["a", "b"]},
            "there are 2 class folders, but output 'y' has 3 classes",
        ),
    ],
)
def test_top1_refuses_what_it_cannot_score(
    metric: str, outputs: dict[str, Any], sample: dict[str, Any], expected: str
) -> None:
    with pytest.raises(MetricError) as error:
        load_metric(metric).score([item(outputs, **sample)])

    assert expected in str(error.value)


def test_labels_of_some_samples_only_are_refused() -> None:
    labelled = item({"y": one_hot([0], 3)}, label=[0])
    plain = item({"y": one_hot([0], 3)})

    with pytest.raises(MetricError, match=r"s 0: it has no label\. Label every sample, or none"):
        load_metric("top1").score([labelled, plain])
    with pytest.raises(MetricError, match="it has a label, and others have none"):
        load_metric("top1").score([plain, labelled])


def test_snr_is_the_mean_over_outputs_of_the_ratio_over_all_samples() -> None:
    """The first output has 1/100 of its energy as error, the second 1/10000."""
    expected = {"a": np.full(4, 10, FLOAT32), "b": np.full((2, 2), 1000, FLOAT32)}
    actual = {"a": np.full(4, 11, FLOAT32), "b": np.full((2, 2), 1010, FLOAT32)}
    silent = {name: np.zeros_like(values) for name, values in expected.items()}

    metric = load_metric("snr")

    assert not metric.scores_float_model
    assert metric.score([item(actual, expected)]) == pytest.approx((20 + 40) / 2)
    assert metric.score([item(actual, expected), item(silent)]) == pytest.approx(30)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([1.0, 2.0], 100.0),
        ([1.0, np.nan], -100.0),
        ([1.0, np.inf], -100.0),
        ([1.0, 2.0, 3.0], -100.0),
    ],
)
def test_outputs_without_a_ratio_are_limited(actual: list[float], expected: float) -> None:
    """The other output, at 20 dB, stays visible."""
    metric = load_metric("snr")
    outputs = {"a": np.array(actual), "b": np.array([1.1])}
    float_outputs = {"a": np.array([1.0, 2.0]), "b": np.array([1.0])}

    assert metric.score([item(outputs, float_outputs)]) == pytest.approx((expected + 20) / 2)


def test_snr_names_an_output_that_is_missing() -> None:
    with pytest.raises(MetricError, match="metric snr: there is no output 'b' for s 0; there are"):
        load_metric("snr").score([item({"a": np.ones(1)}, {"b": np.ones(1)})])


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_scores_do_not_depend_on_how_samples_are_batched(batches: list[list[int]]) -> None:
    """One batch of all rows has the same score as any batches of them."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((len(batch), 4)).astype(FLOAT32) for batch in batches]
    float_rows = [values + rng.standard_normal(values.shape).astype(FLOAT32) for values in rows]
    parts = [
        item({"y": values}, {"y": float_values}, label=batch)
        for values, float_values, batch in zip(rows, float_rows, batches, strict=True)
    ]
    outputs, float_outputs = {"y": np.concatenate(rows)}, {"y": np.concatenate(float_rows)}
    whole = item(outputs, float_outputs, label=np.concatenate(batches))

    for name in ("top1", "snr"):
        metric = load_metric(name)
        assert metric.score(parts) == pytest.approx(metric.score([whole]))
        assert metric.score(parts[::-1]) == pytest.approx(metric.score(parts))
