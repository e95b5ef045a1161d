"""The child process that compiles with TensorRT-RTX: `python -m qdq.engines.rtx_worker`.

It ends with its first refusal, because after a failed build later ones in the same process come out
wrong (seen with TensorRT-RTX 1.7.1); builds after a success come out as alone. Where the system can
fork, the next process is forked from one that has loaded the compiler.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any

import msgspec

CAN_FORK = hasattr(os, "fork")

#: Exit codes of building processes: after a refusal, and plus the signal's number after a crash.
REFUSED, CRASHED = 3, 128


class CompileRequest(msgspec.Struct):
    """A model to compile: paths of the model and of the file for the answer, and the compute capability."""

    model: str
    answer: str
    sm: int


class CompileAnswer(msgspec.Struct):
    """The compiler's name, and its layer list or its refusal."""

    compiler: str
    layers: str = ""
    failure: str = ""


def main() -> None:
    """Build each model that standard input names, one a line, and write its answer beside it."""
    import polygraphy.config

    polygraphy.config.USE_TENSORRT_RTX = True
    import polygraphy.backend.tensorrt_rtx  # loaded once, before any fork
    import polygraphy.backend.trt
    import tensorrt_rtx as trt
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    answered = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what the compiler prints must not look like an answer
    while CAN_FORK:
        worker = os.fork()
        if not worker:
            os._exit(REFUSED if _refuses_one(trt, answered) else 0)
        _, status = os.waitpid(worker, 0)
        if os.WIFSIGNALED(status):
            os._exit(CRASHED + os.WTERMSIG(status))
        if os.WEXITSTATUS(status) != REFUSED:
            return
    _refuses_one(trt, answered)


def _refuses_one(trt: Any, answered: IO[bytes]) -> bool:
    """Answer requests until one is refused or there are no more; return whether one was refused."""
    for line in iter(sys.stdin.buffer.readline, b""):
        failed = _compile(msgspec.json.decode(line, type=CompileRequest), trt)
        answered.write(b"\n")
        if failed:
            return True
    return False


def _compile(request: CompileRequest, trt: Any) -> bool:
    """Write the answer to a request; return whether the compiler refused."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import (
        engine_bytes_from_network,
        get_trt_logger,
        network_from_onnx_path,
    )
    from polygraphy.exception import PolygraphyException

    answer = CompileAnswer(f"TensorRT-RTX {trt.__version__}")
    errors: list[str] = []

    def keep(severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            errors.append(message)
        elif message.startswith("Layers:"):
            answer.layers = message

    get_trt_logger().log = keep
    try:
        config = CreateConfigRTX(
            compute_capabilities=[divmod(request.sm, 10)],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        )
        engine_bytes_from_network(network_from_onnx_path(request.model), config=config)
    except PolygraphyException as error:
        answer.failure = next(
            (line for line in (errors[-1:] or str(error).splitlines())), "refused"
        ).strip()
    Path(request.answer).write_bytes(msgspec.json.encode(answer))
    return bool(answer.failure)


if __name__ == "__main__":
    main()
