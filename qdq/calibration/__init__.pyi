from .calibrator import calibrate as calibrate
from .calibrator import observe as observe
from .methods import Method as Method
from .methods import parse_method as parse_method
from .scales import PairScale as PairScale
from .scales import Scales as Scales
