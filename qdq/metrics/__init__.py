"""Metrics: numbers for the outputs of a model over some samples, built in or the user's own."""

from __future__ import annotations

from qdq.metrics.metric import Metric, MetricComparison, MetricItem, MetricScores, RunningScore
from qdq.metrics.metric_files import MetricLike, load_metric, to_metric
from qdq.metrics.score_drop import Drop, to_drop

__all__ = [
    "Drop",
    "Metric",
    "MetricComparison",
    "MetricItem",
    "MetricLike",
    "MetricScores",
    "RunningScore",
    "load_metric",
    "to_drop",
    "to_metric",
]
