from .given_ranges import GivenRanges as GivenRanges
from .range_file import read_ranges as read_ranges
from .range_file import write_ranges as write_ranges
from .tensor_ranges import Ranges as Ranges
from .tensor_ranges import TensorRange as TensorRange
from .tensor_ranges import merge as merge
