"""The user's function as a metric."""

from __future__ import annotations

import contextlib
import inspect
import math
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from qdq.errors import MetricError, QdqError, first_line
from qdq.metrics.metric import Metric, MetricItem, RunningScore, no_items_error

#: Parameters of a function that scores one item, and of one that scores all: the required ones,
#: and one more that it may have.
ITEM_PARAMETERS = ("outputs", "sample", "float_outputs")
ALL_PARAMETERS = ("all_outputs", "all_samples", "all_float_outputs")

_REQUIRED = 2
_SIGNATURES = (
    "Write it as f(outputs, sample), which scores one sample, or f(all_outputs, all_samples), "
    "which scores all of them; a third parameter float_outputs or all_float_outputs may follow."
)

_Arguments = dict[str, Any]


@dataclass(frozen=True)
class FunctionMetric(Metric):
    """The user's function: the mean of what it returns per sample, or its result for all."""

    name: str
    #: The function, for messages: the file as it was passed, and the name.
    location: str
    function: Callable[..., Any]
    #: The names of its parameters among `ITEM_PARAMETERS` or `ALL_PARAMETERS`.
    parameters: tuple[str, ...]

    @property
    def takes_all(self) -> bool:
        """Whether the function scores all items at once."""
        return self.parameters[0] in ALL_PARAMETERS

    def start(self) -> RunningScore:
        """Return the score of no items."""
        return _AllItems(self) if self.takes_all else _ItemScores(self)

    def call(self, arguments: _Arguments, source: str) -> float:
        """Return the result of the function; `source` names the samples.

        Raises MetricError where it fails, and where the result is no finite number. What it prints
        goes to standard error, because standard output may be JSON.
        """
        passed = {name: arguments[name] for name in self.parameters}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                result = self.function(**passed)
                score = _to_score(result)
        except QdqError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failure(error, source) from error
        if score is None:
            raise MetricError(
                f"{self.location}: the function returned {_describe(result)} for {source}. "
                "Return a finite number."
            )
        return score

    def _failure(self, error: BaseException, source: str) -> MetricError:
        code = getattr(self.function, "__code__", None)
        lines = []
        for frame in traceback.extract_tb(error.__traceback__):
            if code is not None and frame.filename == code.co_filename:
                lines.append(f" in line {frame.lineno}")
        line = lines[-1] if lines else ""
        return MetricError(
            f"{self.location}: the function failed for {source}{line}: "
            f"{type(error).__name__}: {first_line(error)}. Fix the function."
        )


def make_function_metric(function: Callable[..., Any], name: str, location: str) -> FunctionMetric:
    """Return a function as a metric.

    Raises MetricError where its parameters are none that a metric passes.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = inspect.Signature()
    for names in (ITEM_PARAMETERS, ALL_PARAMETERS):
        passed = tuple(name for name in names if name in signature.parameters)
        if passed[:_REQUIRED] != names[:_REQUIRED]:
            continue
        with contextlib.suppress(TypeError):
            signature.bind(**dict.fromkeys(passed))
            return FunctionMetric(name, location, function, passed)
    parameters = signature.replace(return_annotation=inspect.Signature.empty)
    raise MetricError(f"{location}: the function takes {parameters}. {_SIGNATURES}")


class _ItemScores(RunningScore):
    """The mean of a function's results per item."""

    def __init__(self, metric: FunctionMetric) -> None:
        self._metric = metric
        self._scores: list[float] = []

    def add(self, item: MetricItem) -> None:
        arguments = zip(ITEM_PARAMETERS, _item_values(item), strict=True)
        self._scores.append(self._metric.call(dict(arguments), item.name))

    def result(self) -> float:
        if not self._scores:
            raise no_items_error(self._metric.name)
        return statistics.fmean(self._scores)


class _AllItems(RunningScore):
    """A function's result for all items, which are kept in memory."""

    def __init__(self, metric: FunctionMetric) -> None:
        self._metric = metric
        self._items: list[MetricItem] = []

    def add(self, item: MetricItem) -> None:
        self._items.append(item)

    def result(self) -> float:
        if not self._items:
            raise no_items_error(self._metric.name)
        columns = zip(*map(_item_values, self._items), strict=True)
        lists = map(list, columns)
        arguments = dict(zip(ALL_PARAMETERS, lists, strict=True))
        return self._metric.call(arguments, f"all {len(self._items)} samples")


def _item_values(item: MetricItem) -> tuple[Any, Any, Any]:
    """Return the arguments for an item, as dicts that the function may change."""
    return dict(item.outputs), dict(item.sample), dict(item.float_outputs)


def _to_score(result: Any) -> float | None:
    """Return a finite number as a float, also from an array of one; None for anything else."""
    if isinstance(result, Real):
        score = float(result)
    else:
        values = np.asarray(result)
        if values.size != 1 or values.dtype.kind not in "biuf":
            return None
        score = float(values.reshape(()))
    return score if math.isfinite(score) else None


def _describe(result: Any) -> str:
    if result is None or isinstance(result, Real):
        return str(result)
    if isinstance(result, np.ndarray) and result.size == 1:
        return f"an array of {result.reshape(()).item()}"
    if isinstance(result, np.ndarray):
        return f"an array of shape {list(result.shape)}"
    return f"a value of type {type(result).__name__}"
