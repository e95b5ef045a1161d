from .inspection import Inspection as Inspection
from .inspection import inspect as inspect
from .model import QuantizedModel as QuantizedModel
from .pair_diff import PairDiff as PairDiff
from .pair_diff import diff as diff
from .stripper import strip as strip
