from .collection import Observing as Observing
from .collection import collect_locally as collect_locally
