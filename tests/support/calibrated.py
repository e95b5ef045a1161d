"""A model with its plan, ranges and scales, and the ratio at its outputs with other scales."""

from __future__ import annotations

import numpy as np
import onnx

import qdq
from qdq.calibration.scales import Scales
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.decisions import Plan
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.ranges.tensor_ranges import Ranges
from tests.support.graphs import Array, run


class CalibratedModel:
    """A float model, calibrated on some samples."""

    def __init__(
        self, model: onnx.ModelProto, feeds: list[dict[str, Array]], **given: float
    ) -> None:
        self.model, self.feeds = model, feeds
        self.plan: Plan = qdq.plan(model)
        self.index = GraphIndex(source_at_plan_opset(load(model), self.plan))
        self.ranges: Ranges = qdq.observe(model, self.plan, feeds)
        self.scales: Scales = qdq.calibrate(model, self.plan, feeds, given=given or None)

    def measure(self, scales: Scales, feeds: list[dict[str, Array]]) -> float:
        """Return the signal-to-noise ratio of the whole quantized model, in dB."""
        model = qdq.apply(self.model, self.plan, scales)
        expected = np.array([run(self.model, feed)[0] for feed in feeds])
        actual = np.array([run(model, feed)[0] for feed in feeds])
        return float(10 * np.log10((expected**2).sum() / ((actual - expected) ** 2).sum()))
