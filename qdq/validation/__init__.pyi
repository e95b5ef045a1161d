from .engine_report import EngineReport as EngineReport
from .validator import Thresholds as Thresholds
from .validator import Validation as Validation
from .validator import validate as validate
