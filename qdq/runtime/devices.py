"""Devices of ONNX Runtime and their execution providers."""

from __future__ import annotations

from functools import cache

from onnx import TensorProto, helper

from qdq.errors import UsageError, did_you_mean, first_line
from qdq.optional_packages import onnxruntime as ort

_CPU_PROVIDER = "CPUExecutionProvider"
_CUDA_PROVIDER = "CUDAExecutionProvider"

#: ONNX Runtime's providers (execution providers documentation) by the names of devices.
_PROVIDERS = {"cpu": _CPU_PROVIDER, "cuda": _CUDA_PROVIDER}
CPU = (_CPU_PROVIDER,)

#: ONNX Runtime's log levels: qdq writes a single line to standard error.
_FATAL, _WARNING = 4, 2


def execution_providers(device: str) -> tuple[str, ...]:
    """Return the providers of ``cpu``, ``cuda``, or ``cuda,cpu`` for CUDA where it is present.

    Raises UsageError for another device, and where CUDA is required but cannot be used.
    """
    requested = device.split(",")
    for name in requested:
        if name not in _PROVIDERS:
            hint = did_you_mean(name, _PROVIDERS) or "."
            raise UsageError(
                f"unknown device {name!r}{hint} Pass cpu, cuda, or cuda,cpu for cuda if present."
            )
    if "cuda" not in requested:
        return CPU
    problem = _find_cuda_problem()
    if not problem:
        return (_CUDA_PROVIDER, *CPU)  # operators without a CUDA kernel run on the CPU
    if "cpu" not in requested:
        raise UsageError(
            f"no CUDA device: {problem}. Fix that, or allow the CPU with --device cuda,cpu."
        )
    return CPU


@cache
def _find_cuda_problem() -> str:
    """Return the reason why ONNX Runtime cannot compute on CUDA, "" if it can.

    A provider that is built in may lack CUDA's libraries or a GPU. Only a session shows that: it
    then has other providers.
    """
    if _CUDA_PROVIDER not in ort.get_available_providers():
        return "this ONNX Runtime was built without it (onnxruntime-gpu has it)"
    model = _make_smallest_model()
    ort.set_default_logger_severity(_FATAL)
    try:
        session = ort.InferenceSession(model, providers=[_CUDA_PROVIDER])
    except Exception as error:  # noqa: BLE001 any exception means that the provider does not work
        return first_line(error).rstrip(".")
    finally:
        ort.set_default_logger_severity(_WARNING)
    if _CUDA_PROVIDER in session.get_providers():
        return ""
    return "ONNX Runtime cannot load it; it needs a GPU, and CUDA's and cuDNN's libraries"


def _make_smallest_model() -> bytes:
    """Return a serialised model of one Relu."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    relu = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([relu], "relu", [x], [y])
    opset = helper.make_opsetid("", 13)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    content: bytes = model.SerializeToString()
    return content
