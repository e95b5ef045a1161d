from .file_choice import FileChoice as FileChoice
from .file_choice import choose_files as choose_files
from .fixer import fix as fix
from .plan_application import apply as apply
from .quantize_model import Quantized as Quantized
from .quantize_model import quantize as quantize
from .requantize import Existing as Existing
