from .inserter import apply as apply
from .model_file import save as save
from .quantized_weights import store_weights as store_weights
