from .inserter import apply_plan as apply_plan
from .model_file import save as save
from .quantized_weights import store_weights as store_weights
