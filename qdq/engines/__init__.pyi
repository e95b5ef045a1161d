from .engine import Engine as Engine
from .engine import EngineLayer as EngineLayer
from .kernel_probe import probe as probe
from .prediction.predictor import predict_engine as predict_engine
from .rtx_compiler import Compiler as Compiler
from .rtx_compiler import build_engine as build_engine
from .tensorrt import run_tensorrt as run_tensorrt
