"""Compiling a model with TensorRT-RTX, without a GPU, in a child process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx

from qdq.engines.compilable_model import find_labels, replace_tokens, write_compilable
from qdq.engines.engine import Engine, read_layers
from qdq.engines.rtx_worker import CAN_FORK, CRASHED, CompileAnswer, CompileRequest
from qdq.errors import CompilerError
from qdq.graph.bodies import all_nodes
from qdq.graph.source import Source
from qdq.target import Target

_INSTALL = "install it with: pip install tensorrt-rtx-cu12"

#: Where in the compiler's own sources a message comes from: of no use to the reader.
_SOURCE_PLACE = re.compile(
    r"\[\S+?\.cpp:\d+[^\]]*\]|\b\w+\.cpp:\d+(?:: ERROR:)?(?:\s+In function \w+: \[\d+\])?|\bIn \w+ at \S+|^\w+::\w+: Error Code \d+: [\w ]+\("
    r"|\bIn operator\(\) at \S+"
)


def build_engine(
    model: onnx.ModelProto | Source,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Engine:
    """Return the engine that TensorRT-RTX compiles for a target; a refusal comes back as its `failure`.

    `shapes` fixes the dynamic dimensions by input name; those not named become 1.
    Raises CompilerError where TensorRT-RTX is not installed or ends without an answer.
    """
    with Compiler() as compiler:
        return compiler.build(model, target, shapes)


class Compiler:
    """A child process that compiles models one after another, each as if it were alone. Use as a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._errors.close()

    def build(
        self,
        model: onnx.ModelProto | Source,
        target: Target,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Engine:
        """Return the engine of a model as `build_engine` does."""
        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise CompilerError(f"target {target}: TensorRT-RTX is not installed; {_INSTALL}")
        proto = model.model if isinstance(model, Source) else model
        labels = [label for label, _ in all_nodes(proto.graph)]
        with tempfile.TemporaryDirectory(prefix="qdq-") as folder:
            path = write_compilable(model, shapes or {}, Path(folder))
            answer = self._answer(
                CompileRequest(str(path), f"{folder}/answer.json", target.sm), target
            )
        layers = tuple(read_layers(answer.layers, labels))
        failure = replace_tokens(_without_places(answer.failure), labels)
        return Engine(target, answer.compiler, layers, failure, find_labels(answer.failure, labels))

    def _answer(self, request: CompileRequest, target: Target) -> CompileAnswer:
        process = self._process = self._process or self._start()
        written = Path(request.answer)
        if _ask(process, request) and written.exists():
            answer = msgspec.json.decode(written.read_bytes(), type=CompileAnswer)
            if answer.failure and not CAN_FORK:
                self._end()
            return answer
        code = self._end()
        if code < 0 or code > CRASHED:
            return CompileAnswer(
                "TensorRT-RTX",
                failure=f"the compiler crashed on this model (signal {-code if code < 0 else code - CRASHED})",
            )
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or [
            "no message"
        ]
        raise CompilerError(f"target {target}: the compiler's process could not start: {last[0]}")

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "qdq.engines.rtx_worker"]
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
        )

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            process.communicate()
        return process.wait()


def _ask(process: subprocess.Popen[bytes], request: CompileRequest) -> bool:
    """Send a request to a compiling process and wait; return whether it answered."""
    if process.stdin is None or process.stdout is None:
        return False
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
    except OSError:
        return False
    return process.stdout.readline() != b""


def _without_places(failure: str) -> str:
    return " ".join(_SOURCE_PLACE.sub(" ", failure).strip(" .").split())
