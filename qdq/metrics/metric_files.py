"""Metrics by name: built in, or functions of the user's files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from qdq.arguments import wrong_type
from qdq.data.scripts import is_script, load_function, split_script_name
from qdq.errors import MetricError, UsageError, did_you_mean
from qdq.metrics.metric import Metric
from qdq.metrics.signal_to_noise import SNR, SignalToNoise
from qdq.metrics.top1 import TOP1, Top1
from qdq.metrics.user_function import make_function_metric

#: The function of a file without the name of one.
DEFAULT_FUNCTION = "metric"

_FORMS = (
    "Pass snr, top1, top1:OUTPUT, or a function of yours as FILE.py:FUNCTION (qdq docs metrics)."
)

#: A metric, its name, or a function with the parameters that docs/metrics.md describes.
MetricLike: TypeAlias = Metric | str | Callable[..., Any]


def load_metric(text: str) -> Metric:
    """Return the metric ``snr``, ``top1``, ``top1:OUTPUT`` or ``FILE.py:FUNCTION``.

    Raises UsageError for another text, and MetricError for a file without such a function, or one
    of other parameters.
    """
    if text == SNR:
        return SignalToNoise()
    if text == TOP1:
        return Top1()
    kind, _, output = text.partition(":")
    if kind == TOP1 and output:
        return Top1(output)
    if not is_script(text):
        hint = did_you_mean(text, (SNR, TOP1))
        raise UsageError(f"unknown metric {text!r}{hint} {_FORMS}")
    path, function = split_script_name(text, DEFAULT_FUNCTION)
    if not path.is_file():
        raise MetricError(f"{path}: there is no such file of a metric. {_FORMS}")
    loaded = load_function(path, function, MetricError)
    return make_function_metric(loaded, f"{path.name}:{function}", f"{path}:{function}")


def to_metric(value: object, name: str = "metric") -> Metric:
    """Return the metric that an argument of the library means.

    Raises UsageError, beginning with `name`, for values of other types.
    """
    if isinstance(value, Metric):
        return value
    if isinstance(value, str):
        return load_metric(value)
    if not callable(value):
        raise wrong_type(value, name, "a name such as 'top1', a function, or a Metric")
    function_name = getattr(value, "__name__", type(value).__name__)
    return make_function_metric(value, function_name, f"{name} {function_name}")
