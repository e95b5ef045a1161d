"""The child process that compiles with TensorRT-RTX: `python -m qdq.engines.rtx_worker`.

It ends with its first refusal, because builds after a failed one in the same process give wrong
results (observed with TensorRT-RTX 1.7.1); a build after a success gives the same as a build in a
new process. Where the system can fork, the next process is forked from one that has loaded the
compiler.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

import msgspec

CAN_FORK = hasattr(os, "fork")

#: Exit code of a worker after a refusal.
REFUSED = 3

#: Exit code after a crash, plus the signal's number.
CRASHED = 128

_MESSAGE_END = b"\n"


class CompileRequest(msgspec.Struct):
    """A model to compile: paths of the model and of the answer file, and the compute capability."""

    model: str
    answer: str
    sm: int


class CompileAnswer(msgspec.Struct):
    """The compiler's name, and its layer list or its refusal."""

    compiler: str
    layers: str = ""
    failure: str = ""


def main() -> None:
    """Build each model that a line of standard input names, and write its answer file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that requests
    import polygraphy.config

    polygraphy.config.USE_TENSORRT_RTX = True
    import polygraphy.backend.tensorrt_rtx  # loaded once, before any fork
    import polygraphy.backend.trt
    import tensorrt_rtx as trt
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the compiler's own output must not be taken for an answer
    while CAN_FORK:
        worker = os.fork()
        if not worker:
            threading.Thread(target=_end_without_requester, daemon=True).start()
            os._exit(REFUSED if _serve_until_refusal(trt, answers) else 0)
        _, status = os.waitpid(worker, 0)
        if os.WIFSIGNALED(status):
            os._exit(CRASHED + os.WTERMSIG(status))
        if os.WEXITSTATUS(status) != REFUSED:
            return
    _serve_until_refusal(trt, answers)


def _end_without_requester() -> None:
    """End this process when nothing can write to its standard input any more.

    A build may take minutes, and the process that requested it may have been killed.
    """
    closed = select.poll()
    closed.register(sys.stdin.fileno(), 0)
    closed.poll()
    os._exit(0)


def _serve_until_refusal(trt: Any, answers: IO[bytes]) -> bool:
    """Answer requests until one is refused or none is left; return whether one was refused."""
    for line in iter(sys.stdin.buffer.readline, b""):
        request = msgspec.json.decode(line, type=CompileRequest)
        is_refused = _compile(request, trt)
        answers.write(_MESSAGE_END)
        if is_refused:
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

    def keep_message(severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            errors.append(message)
        elif message.startswith("Layers:"):
            answer.layers = message

    get_trt_logger().log = keep_message
    try:
        config = CreateConfigRTX(
            compute_capabilities=[divmod(request.sm, 10)],
            profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        )
        engine_bytes_from_network(network_from_onnx_path(request.model), config=config)
    except PolygraphyException as error:
        answer.failure = _describe_refusal(errors, error)
    Path(request.answer).write_bytes(msgspec.json.encode(answer))
    return bool(answer.failure)


def _describe_refusal(errors: list[str], error: Exception) -> str:
    """Return the last error that the compiler logged, else the first line of the exception."""
    lines = errors[-1:] or str(error).splitlines() or ["refused"]
    return lines[0].strip()


if __name__ == "__main__":
    main()
