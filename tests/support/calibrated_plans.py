"""Plans with their scales, for tests of what is measured with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import qdq
from qdq.calibration.calibrator import gather_ranges
from qdq.calibration.methods import parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.data.feeds import FeedSample, open_feeds
from qdq.graph.loader import load
from qdq.graph.source import ModelLike
from qdq.observers.collection import DEFAULT_OBSERVING, CollectionJob
from qdq.planning.plan_request import PlanRequest
from qdq.planning.planner import plan_source
from qdq.rules.rule_files import load_rules
from qdq.sensitivity.plan_sensitivity import CalibratedPlan
from qdq.target import to_targets
from tests.support.graphs import Array

Feeds = list[dict[str, Array]]


def draw_feeds(model: onnx.ModelProto, count: int = 2, seed: int = 0) -> Feeds:
    """Return samples of noise for the inputs of a model; dynamic dimensions are 2."""
    stored = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(seed)
    feeds: Feeds = []
    for i in range(count):
        feed: dict[str, Array] = {}
        for value in model.graph.input:
            if value.name in stored:
                continue
            tensor = value.type.tensor_type
            shape = [dim.dim_value or 2 for dim in tensor.shape.dim]
            if tensor.elem_type == TensorProto.BOOL:
                feed[value.name] = np.array(i % 2 == 0)
                continue
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        feeds.append(feed)
    return feeds


def calibrate_plan(
    model: ModelLike,
    feeds: Iterable[Mapping[str, Array]],
    rules: Iterable[str] = (),
    target: str = "rtx:sm86",
    **request: Any,
) -> CalibratedPlan:
    """Return the plan of a model, with the scales that some samples give."""
    rule_set = load_rules(list(rules) or ["tensorrt"])
    options = PlanRequest(rules=rule_set, targets=to_targets([target]), **request)
    index, plan = plan_source(load(model), options)
    method = parse_method("auto", None)
    data = [dict(feed) for feed in feeds]
    job = CollectionJob(index, plan, data, method.needs_histogram, None)
    ranges, _ = gather_ranges(job, DEFAULT_OBSERVING, None, None)
    scales = choose_scales(index, plan, ranges, method, None)
    return CalibratedPlan(index, plan, scales, ranges)


def read_samples(calibrated: CalibratedPlan, feeds: Feeds) -> list[FeedSample]:
    """Return samples as a measurement takes them."""
    return list(open_feeds(calibrated.index, feeds, None).samples())


def without_placements(plan: qdq.Plan, removed: Iterable[qdq.Placement]) -> list[qdq.Placement]:
    """Return the placements of a plan without some of them."""
    gone = set(removed)
    return [placement for placement in plan.placements if placement not in gone]
