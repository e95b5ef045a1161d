"""Insert, repair and check Q/DQ pairs in exported ONNX graphs for TensorRT.

>>> import qdq
>>> result = qdq.quantize("model.onnx", "samples/")
>>> result.plan.placements[0].because
('weighted-inputs',)

Every function takes a path, an ``onnx.ModelProto`` or a graphsurgeon Graph. It returns records and
models, prints nothing, and raises `QdqError` with a message for the user.
"""

from __future__ import annotations

import importlib

#: As in `typing`, whose import would be most of the time in which Ctrl-C still has a traceback.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from qdq.calibration.calibrator import calibrate as calibrate
    from qdq.calibration.calibrator import observe as observe
    from qdq.calibration.range_sources import read_given as read_given
    from qdq.calibration.scales import Scales as Scales
    from qdq.checking.checker import check as check
    from qdq.checking.finding import Finding as Finding
    from qdq.data.feeds import Subset as Subset
    from qdq.data.images import Images as Images
    from qdq.errors import QdqError as QdqError
    from qdq.graph.loader import load as load
    from qdq.graph.shape_profiles import Profile as Profile
    from qdq.graph.shape_profiles import parse_profile as parse_profile
    from qdq.graph.source import Source as Source
    from qdq.observers.collection import Observing as Observing
    from qdq.pipeline.fixer import Fixed as Fixed
    from qdq.pipeline.fixer import fix as fix
    from qdq.pipeline.float_extremes import measure_extremes as measure_extremes
    from qdq.pipeline.float_options import FloatOptions as FloatOptions
    from qdq.pipeline.plan_application import apply as apply
    from qdq.pipeline.quantize_model import Quantized as Quantized
    from qdq.pipeline.quantize_model import quantize as quantize
    from qdq.pipeline.recovery_options import Recovery as Recovery
    from qdq.pipeline.sensitivity_analysis import Sensitivity as Sensitivity
    from qdq.pipeline.sensitivity_analysis import measure_sensitivity as measure_sensitivity
    from qdq.planning.decisions import Plan as Plan
    from qdq.planning.explanation import explain as explain
    from qdq.planning.planner import plan as plan
    from qdq.precision.cast_model import CastModel as CastModel
    from qdq.precision.cast_model import cast as cast
    from qdq.quantized.inspection import Inspection as Inspection
    from qdq.quantized.inspection import inspect as inspect
    from qdq.quantized.pair_diff import PairDiff as PairDiff
    from qdq.quantized.pair_diff import diff as diff
    from qdq.quantized.stripper import strip as strip
    from qdq.ranges.given_ranges import GivenRanges as GivenRanges
    from qdq.ranges.given_ranges import given_by_hand as given_by_hand
    from qdq.ranges.tensor_ranges import Part as Part
    from qdq.ranges.tensor_ranges import Ranges as Ranges
    from qdq.ranges.tensor_ranges import merge as merge
    from qdq.rewriting.model_file import save as save
    from qdq.rules.rule_files import load_rules as load_rules
    from qdq.sensitivity.budget import Budget as Budget
    from qdq.target import Target as Target
    from qdq.target import parse_target as parse_target
    from qdq.validation.validator import Thresholds as Thresholds
    from qdq.validation.validator import Validation as Validation
    from qdq.validation.validator import misses as misses
    from qdq.validation.validator import validate as validate

__version__ = "0.2.0"

#: The module of each public name, imported on first use so that `qdq --help` stays fast.
_HOME = {
    "Budget": "qdq.sensitivity.budget",
    "CastModel": "qdq.precision.cast_model",
    "Finding": "qdq.checking.finding",
    "Fixed": "qdq.pipeline.fixer",
    "FloatOptions": "qdq.pipeline.float_options",
    "GivenRanges": "qdq.ranges.given_ranges",
    "Images": "qdq.data.images",
    "Inspection": "qdq.quantized.inspection",
    "Observing": "qdq.observers.collection",
    "PairDiff": "qdq.quantized.pair_diff",
    "Part": "qdq.ranges.tensor_ranges",
    "Plan": "qdq.planning.decisions",
    "Profile": "qdq.graph.shape_profiles",
    "QdqError": "qdq.errors",
    "Quantized": "qdq.pipeline.quantize_model",
    "Recovery": "qdq.pipeline.recovery_options",
    "Ranges": "qdq.ranges.tensor_ranges",
    "Scales": "qdq.calibration.scales",
    "Sensitivity": "qdq.pipeline.sensitivity_analysis",
    "Source": "qdq.graph.source",
    "Subset": "qdq.data.feeds",
    "Target": "qdq.target",
    "Thresholds": "qdq.validation.validator",
    "Validation": "qdq.validation.validator",
    "apply": "qdq.pipeline.plan_application",
    "calibrate": "qdq.calibration.calibrator",
    "cast": "qdq.precision.cast_model",
    "check": "qdq.checking.checker",
    "diff": "qdq.quantized.pair_diff",
    "explain": "qdq.planning.explanation",
    "fix": "qdq.pipeline.fixer",
    "given_by_hand": "qdq.ranges.given_ranges",
    "inspect": "qdq.quantized.inspection",
    "load": "qdq.graph.loader",
    "load_rules": "qdq.rules.rule_files",
    "measure_extremes": "qdq.pipeline.float_extremes",
    "measure_sensitivity": "qdq.pipeline.sensitivity_analysis",
    "merge": "qdq.ranges.tensor_ranges",
    "misses": "qdq.validation.validator",
    "observe": "qdq.calibration.calibrator",
    "parse_profile": "qdq.graph.shape_profiles",
    "parse_target": "qdq.target",
    "plan": "qdq.planning.planner",
    "quantize": "qdq.pipeline.quantize_model",
    "read_given": "qdq.calibration.range_sources",
    "save": "qdq.rewriting.model_file",
    "strip": "qdq.quantized.stripper",
    "validate": "qdq.validation.validator",
}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605 a list of texts


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qdq' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
