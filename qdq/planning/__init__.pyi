from .decisions import (
    LeftFloat as LeftFloat,
)
from .decisions import (
    Placement as Placement,
)
from .decisions import (
    Plan as Plan,
)
from .decisions import (
    ScaleGroup as ScaleGroup,
)
from .explanation import explain as explain
from .plan_diff import diff_plans as diff_plans
from .plan_file import read_plan as read_plan
from .planner import plan as plan
