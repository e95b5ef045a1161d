from .metric import (
    Metric as Metric,
)
from .metric import (
    MetricComparison as MetricComparison,
)
from .metric import (
    MetricItem as MetricItem,
)
from .metric import (
    MetricScores as MetricScores,
)
from .metric import (
    RunningScore as RunningScore,
)
from .metric_files import (
    MetricLike as MetricLike,
)
from .metric_files import (
    load_metric as load_metric,
)
from .metric_files import (
    to_metric as to_metric,
)
from .score_drop import Drop as Drop
from .score_drop import to_drop as to_drop
