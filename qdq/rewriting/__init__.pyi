from .inserter import apply as apply
from .model_file import save as save
