from .cast_model import CastModel as CastModel
from .cast_model import cast as cast
from .float_plan import FloatPlan as FloatPlan
from .float_plan import KeptNode as KeptNode
from .stored_floats import WeightLoss as WeightLoss
