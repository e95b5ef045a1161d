"""Metrics: what one is, the items that it scores, and the scores of two models side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import msgspec

from qdq.arrays import Array
from qdq.errors import MetricError


class MetricItem(msgspec.Struct, frozen=True):
    """The outputs of a model for one sample, with the sample."""

    #: The outputs to score, by name.
    outputs: Mapping[str, Array]
    #: The inputs of the model and the other arrays of the sample, such as labels, by name.
    sample: Mapping[str, Array]
    #: The outputs of the float model, by name.
    float_outputs: Mapping[str, Array]
    #: The source of the sample, for messages.
    name: str


class RunningScore(ABC):
    """The score of the items so far."""

    #: What the score is computed from, for reports, such as "labels"; known after the first item.
    basis: str = ""

    @abstractmethod
    def add(self, item: MetricItem) -> None:
        """Add an item; raises MetricError where the metric does not fit it."""

    @abstractmethod
    def result(self) -> float:
        """Return the score of all items; raises MetricError where there are none."""


class Metric(ABC):
    """A number for the outputs of a model over some samples; a larger one is better."""

    #: The name, as ``--metric`` takes it.
    name: str
    #: Whether the float model has a score of its own. It has none where the metric is the distance
    #: from it.
    scores_float_model: bool = True

    @abstractmethod
    def start(self) -> RunningScore:
        """Return the score of no items, to add items to."""

    def score(self, items: Iterable[MetricItem]) -> float:
        """Return the score of some items.

        Raises MetricError where there are none, and where the metric does not fit them.
        """
        running_score = self.start()
        for item in items:
            running_score.add(item)
        return running_score.result()


class MetricScores(msgspec.Struct, frozen=True):
    """The score of the quantized and of the float model by one metric; larger is better."""

    #: The metric.
    name: str
    #: What it is computed from, such as "labels", or "" for the user's own function.
    basis: str
    #: The score of the quantized model.
    quantized: float
    #: The score of the float model. None where the metric is the distance from the float model.
    float_model: float | None

    @property
    def drop(self) -> float | None:
        """The loss of score against the float model, negative for a gain."""
        return None if self.float_model is None else self.float_model - self.quantized


class MetricComparison:
    """The scores of the quantized and of the float model while their samples run."""

    def __init__(self, metric: Metric) -> None:
        self._name = metric.name
        self._quantized_score = metric.start()
        self._float_score = metric.start() if metric.scores_float_model else None

    def add(self, item: MetricItem) -> None:
        """Add an item of the quantized model; raises MetricError where the metric does not fit."""
        if self._float_score is not None:
            self._float_score.add(msgspec.structs.replace(item, outputs=item.float_outputs))
        self._quantized_score.add(item)

    def result(self) -> MetricScores:
        """Return both scores; raises MetricError without items."""
        quantized = self._quantized_score.result()
        float_model = self._float_score.result() if self._float_score else None
        return MetricScores(self._name, self._quantized_score.basis, quantized, float_model)


def no_items_error(name: str) -> MetricError:
    """Return the error for a score of no items."""
    return MetricError(f"metric {name}: there are no samples to score. Pass data.")


def find_output(name: str, item: MetricItem, output: str) -> Array:
    """Return an output of an item; raises MetricError where it has none of that name."""
    if output in item.outputs:
        return item.outputs[output]
    known = ", ".join(map(repr, item.outputs)) or "nothing"
    raise MetricError(
        f"metric {name}: there is no output {output!r} for {item.name}; there are {known}. "
        "Pass another output."
    )
