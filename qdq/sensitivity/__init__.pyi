from .budget import Budget as Budget
from .budget import search_budget as search_budget
from .guard import guard_plan as guard_plan
from .layer_groups import LayerGroup as LayerGroup
from .layer_groups import find_layer_groups as find_layer_groups
from .partial_result import PartialResult as PartialResult
from .plan_sensitivity import CalibratedPlan as CalibratedPlan
from .plan_sensitivity import PlanSensitivity as PlanSensitivity
