"""What ONNX Runtime computes on."""

from __future__ import annotations

from functools import cache

import onnxruntime as ort
from onnx import TensorProto, helper

from qdq.errors import UsageError, did_you_mean, first_line

#: ONNX Runtime's providers (execution providers documentation) by the names of devices.
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CPU = (_PROVIDERS["cpu"],)

#: ONNX Runtime's levels of logging: standard error is for one line of ours.
_FATAL, _WARNING = 4, 2


def execution_providers(device: str) -> tuple[str, ...]:
    """Return the providers of ``cpu``, ``cuda``, or ``cuda,cpu`` for CUDA where it is present.

    Raises UsageError for other words, and where a device that is wanted is not there.
    """
    wanted = device.split(",")
    for word in wanted:
        if word not in _PROVIDERS:
            raise UsageError(
                f"unknown device {word!r}{did_you_mean(word, _PROVIDERS)}; write cpu, cuda, or cuda,cpu for cuda where it is present"
            )
    if "cuda" not in wanted:
        return CPU
    if missing := _cuda_missing():
        if "cpu" not in wanted:
            raise UsageError(
                f"no CUDA device: {missing}; mend that, or allow the CPU with --device cuda,cpu"
            )
        return CPU
    return (_PROVIDERS["cuda"], *CPU)  # operators without a CUDA kernel run on the CPU


@cache
def _cuda_missing() -> str:
    """Return why ONNX Runtime cannot compute on CUDA, or an empty text.

    A provider that is built in may still lack CUDA's libraries or a GPU: only a session tells, which then has other providers.
    """
    if _PROVIDERS["cuda"] not in ort.get_available_providers():
        return "this ONNX Runtime was built without it (onnxruntime-gpu has it)"
    ort.set_default_logger_severity(_FATAL)
    try:
        session = ort.InferenceSession(_smallest_model(), providers=[_PROVIDERS["cuda"]])
    except Exception as error:  # noqa: BLE001 whatever the provider throws, it does not work
        return first_line(error)
    finally:
        ort.set_default_logger_severity(_WARNING)
    return (
        ""
        if _PROVIDERS["cuda"] in session.get_providers()
        else "ONNX Runtime cannot load it; it needs a GPU, and CUDA's and cuDNN's libraries"
    )


def _smallest_model() -> bytes:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:]
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    ).SerializeToString()
    return content
