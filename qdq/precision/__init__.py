"""The float part of a model in FP16 or BF16: which nodes stay in FP32, and the Casts between."""

from qdq.precision.cast_model import CastModel, cast
from qdq.precision.float_plan import FloatPlan, KeptNode
from qdq.precision.stored_floats import WeightLoss

__all__ = ["CastModel", "FloatPlan", "KeptNode", "WeightLoss", "cast"]
