"""The metric ``top1``: the share of largest class scores that are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qdq.arrays import Array
from qdq.data.labels import CLASS_NAMES, LABEL
from qdq.errors import MetricError
from qdq.metrics.metric import Metric, MetricItem, RunningScore, find_output, no_items_error

TOP1 = "top1"

#: The arrays of a sample that may hold its labels, the first of them that is there.
LABEL_NAMES = (LABEL, "labels")

#: The basis of scores by labels.
LABELS = "labels"

_LEAST_CLASSES = 2
#: Axes after the first, of more than one entry: classes, or positions and classes.
_MOST_AXES = 2
_FORMS = "Pass top1:OUTPUT, or a function of yours as FILE.py:FUNCTION."


@dataclass(frozen=True)
class Top1(Metric):
    """The share of rows of class scores whose largest entry is the label's class.

    Without labels it is the share in which the float model has the same class. A row is an entry
    of the batch, or a position in it.
    """

    #: The output of class scores. None for the only one that can hold some.
    output: str | None = None

    @property
    def name(self) -> str:  # type: ignore[override] # computed here, stored in other metrics
        """The name, as ``--metric`` takes it."""
        return TOP1 if self.output is None else f"{TOP1}:{self.output}"

    def start(self) -> RunningScore:
        """Return the score of no items."""
        return _RunningShare(self.name, self.output)


class _RunningShare(RunningScore):
    def __init__(self, name: str, output: str | None) -> None:
        self._name = name
        self._output = output
        #: None before the first item.
        self._has_labels: bool | None = None
        self._rows = 0
        self._right_rows = 0

    def add(self, item: MetricItem) -> None:
        if self._output is None:
            self._output = self._select_output(item)
        label_name = next((name for name in LABEL_NAMES if name in item.sample), None)
        self._require_same_basis(label_name, item)
        scores = self._find_scores(item, self._output)
        if label_name is None:
            expected = self._find_float_classes(item, self._output)
            if expected.shape != (len(scores),):
                self._rows += expected.size
                return
        else:
            expected = self._find_labels(item, label_name, scores)
        self._rows += len(scores)
        self._right_rows += int((scores.argmax(1) == expected).sum())

    def result(self) -> float:
        if not self._rows:
            raise no_items_error(self._name)
        return self._right_rows / self._rows

    def _require_same_basis(self, label_name: str | None, item: MetricItem) -> None:
        """Raise MetricError where this sample has labels and others have none, or reverse."""
        has_labels = label_name is not None
        if self._has_labels not in (None, has_labels):
            fact = "it has a label, and others have none" if has_labels else "it has no label"
            raise MetricError(
                f"{item.name}: {fact}. Label every sample, or none, for --metric {self._name}."
            )
        self._has_labels = has_labels
        self.basis = LABELS if has_labels else "float outputs"

    def _select_output(self, item: MetricItem) -> str:
        candidates = list(_list_class_outputs(item.float_outputs))
        if len(candidates) == 1:
            return candidates[0]
        names = candidates or list(item.float_outputs)
        shapes = ", ".join(f"{name!r} {_shape(item.float_outputs[name])}" for name in names)
        fact = "several outputs" if candidates else "no output"
        verb = "look" if candidates else "looks"
        raise MetricError(
            f"metric {self._name}: {fact} {verb} like class scores, [batch, classes] or [batch, "
            f"positions, classes] of floats: {shapes}. {_FORMS}"
        )

    def _find_scores(self, item: MetricItem, output: str) -> Array:
        """Return the class scores of an item as [rows, classes]."""
        values = find_output(self._name, item, output)
        scores = _class_rows(values)
        if scores is None:
            raise MetricError(
                f"metric {self._name}: output {output!r} {_shape(values)} holds no class scores, "
                f"[batch, classes] or [batch, positions, classes]. {_FORMS}"
            )
        return scores

    def _find_float_classes(self, item: MetricItem, output: str) -> Array:
        rows = _class_rows(item.float_outputs[output])
        return np.empty(0) if rows is None else rows.argmax(1)

    def _find_labels(self, item: MetricItem, label_name: str, scores: Array) -> Array:
        """Return the class of each row; raises MetricError for labels that do not fit the rows."""
        rows, classes = scores.shape
        labels = np.asarray(item.sample[label_name]).ravel()
        location = f"{item.name}: array {label_name!r}"
        if labels.dtype.kind not in "iuf" or (labels != np.floor(labels)).any():
            raise MetricError(f"{location} holds no class numbers. Save numbers from 0.")
        if labels.size != rows:
            raise MetricError(
                f"{location} holds {labels.size} classes, but output {self._output!r} has "
                f"{rows} rows of class scores. Save one class for each row."
            )
        outside = labels[(labels < 0) | (labels >= classes)]
        if outside.size:
            raise MetricError(
                f"{location} holds class {int(outside[0])}, but output {self._output!r} has the "
                f"classes 0 to {classes - 1}. Number classes as the model does."
            )
        self._require_all_classes(item, classes)
        return labels

    def _require_all_classes(self, item: MetricItem, classes: int) -> None:
        """Raise MetricError where the model has other classes than there are class folders."""
        names = item.sample.get(CLASS_NAMES)
        if names is not None and np.size(names) != classes:
            raise MetricError(
                f"{item.name}: there are {np.size(names)} class folders, but output "
                f"{self._output!r} has {classes} classes, so the position of a folder is no class. "
                "Pass --labels FILE, or --labels off for the agreement with the float model."
            )


def _list_class_outputs(outputs: Mapping[str, Array]) -> Iterator[str]:
    """Yield the names of outputs that can hold class scores."""
    for name, values in outputs.items():
        if _class_rows(values) is not None:
            yield name


def _class_rows(values: Array) -> Array | None:
    """Return class scores as [rows, classes].

    Classes are on the last axis after the first that has more than one entry, as in [batch,
    classes], [batch, classes, 1, 1] and [batch, positions, classes]. None for other shapes, for a
    single class, and for values that are no floats.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return None
    axes = [size for size in values.shape[1:] if size != 1]
    if not 1 <= len(axes) <= _MOST_AXES or axes[-1] < _LEAST_CLASSES:
        return None
    return values.reshape(-1, axes[-1])


def _shape(values: Array) -> str:
    return f"{values.dtype}{list(values.shape)}" if isinstance(values, np.ndarray) else ""
