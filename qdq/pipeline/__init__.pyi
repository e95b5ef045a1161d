from .fixer import fix as fix
from .quantize_model import Quantized as Quantized
from .quantize_model import quantize as quantize
from .requantize import Existing as Existing
