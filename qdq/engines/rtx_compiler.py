"""Compilation of models with TensorRT-RTX, without a GPU, in a child process."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import onnx

from qdq.engines.compilable_model import find_labels, replace_tokens, write_compilable
from qdq.engines.engine import Engine, read_layers
from qdq.engines.rtx_worker import CAN_FORK, CRASHED, CompileAnswer, CompileRequest
from qdq.errors import CompilerError
from qdq.files.temporary import work_folder
from qdq.graph.bodies import all_nodes
from qdq.graph.plugins import list_plugins
from qdq.graph.source import Source
from qdq.interruption import clean_before_end
from qdq.optional_packages import explain_missing
from qdq.stage_log import LOGGER
from qdq.target import Target

#: The place in the compiler's own sources that a message comes from, which does not help the user.
_SOURCE_PLACE = re.compile(
    r"\[\S+?\.cpp:\d+[^\]]*\]"
    r"|\b\w+\.cpp:\d+(?:: ERROR:)?(?:\s+In function \w+: \[\d+\])?"
    r"|\bIn \w+ at \S+"
    r"|^\w+::\w+: Error Code \d+: [\w ]+\("
    r"|\bIn operator\(\) at \S+"
)


#: Child processes that have not ended.
_live_processes: set[subprocess.Popen[bytes]] = set()


def _kill_processes() -> None:
    """Kill the child processes: one that loads the compiler does not see yet that this one ends."""
    for process in tuple(_live_processes):
        process.kill()


clean_before_end(_kill_processes)
#: A part of the compiler's message about an operator that neither it nor a plugin has.
_PLUGIN_REFUSAL = "Plugin not found"


def build_engine(
    model: onnx.ModelProto | Source,
    target: Target,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Engine:
    """Return the engine that TensorRT-RTX compiles for a target.

    `shapes` fixes the dynamic dimensions by input name; those not named become 1. The compiler's
    refusal is returned as `Engine.failure`. Raises CompilerError where TensorRT-RTX is not
    installed or ends without an answer.
    """
    with Compiler() as compiler:
        return compiler.build(model, target, shapes)


class Compiler:
    """A child process that compiles models one after another, independently of each other.

    Use as a context manager.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 closed by __exit__

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_process()
        self._errors.close()

    def build(
        self,
        model: onnx.ModelProto | Source,
        target: Target,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Engine:
        """Return the engine of a model as `build_engine` does."""
        reason = explain_missing("tensorrt_rtx", "polygraphy")
        if reason:
            raise CompilerError(f"target {target}: {reason}")
        proto = model.model if isinstance(model, Source) else model
        labels = [label for label, _ in all_nodes(proto.graph)]
        with work_folder() as folder:
            path = write_compilable(model, shapes or {}, folder)
            request = CompileRequest(str(path), str(folder / "answer.json"), target.sm)
            start = time.monotonic()
            answer = self._compile(request, target)
        seconds = time.monotonic() - start
        outcome = "refused" if answer.failure else "built"
        LOGGER.info("engine for %s: %s in %.2f s (%s)", target, outcome, seconds, answer.compiler)
        failure = replace_tokens(_remove_source_places(answer.failure), labels)
        if _PLUGIN_REFUSAL in failure:
            failure = _name_plugins(proto) or failure
        return Engine(
            target=target,
            compiler=answer.compiler,
            layers=tuple(read_layers(answer.layers, labels)),
            failure=failure,
            refused_nodes=find_labels(answer.failure, labels),
        )

    def _compile(self, request: CompileRequest, target: Target) -> CompileAnswer:
        """Return the answer of the child process to a request; a crash is a refusal."""
        if self._process is None:
            self._process = self._start_process()
        answer_file = Path(request.answer)
        if _send_request(self._process, request) and answer_file.exists():
            answer = msgspec.json.decode(answer_file.read_bytes(), type=CompileAnswer)
            if answer.failure and not CAN_FORK:
                self._end_process()
            return answer
        exit_code = self._end_process()
        if exit_code < 0 or exit_code > CRASHED:
            signal = -exit_code if exit_code < 0 else exit_code - CRASHED
            failure = f"the compiler crashed on this model (signal {signal})"
            return CompileAnswer("TensorRT-RTX", failure=failure)
        reason = self._read_last_error()
        raise CompilerError(f"target {target}: the compiler process could not start: {reason}")

    def _start_process(self) -> subprocess.Popen[bytes]:
        """Return a new child process; it ends when this process does."""
        search_path = os.pathsep.join(filter(None, sys.path))
        self._errors.seek(0)
        self._errors.truncate()
        process = subprocess.Popen(
            [sys.executable, "-m", "qdq.engines.rtx_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": search_path},
        )
        _live_processes.add(process)
        return process

    def _end_process(self) -> int:
        """End the child process and return its exit code, 0 if there is none."""
        process = self._process
        self._process = None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            process.communicate()
        exit_code = process.wait()
        _live_processes.discard(process)
        return exit_code

    def _read_last_error(self) -> str:
        """Return the last line that the child process wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def _send_request(process: subprocess.Popen[bytes], request: CompileRequest) -> bool:
    """Send a request to a child process and wait; return whether it answered."""
    if process.stdin is None or process.stdout is None:
        return False
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
    except OSError:
        return False
    return process.stdout.readline() != b""


def _name_plugins(model: onnx.ModelProto) -> str:
    """Return a refusal that names the nodes whose operators ONNX lacks, "" where none does."""
    plugins = list_plugins(model)
    titles: list[str] = []
    for label, node in all_nodes(model.graph):
        if (node.domain, node.op_type) in plugins:
            titles.append(f"{label} ({node.op_type})")
    return f"it has no plugin for {', '.join(titles)}" if titles else ""


def _remove_source_places(failure: str) -> str:
    text = _SOURCE_PLACE.sub(" ", failure).strip(" .")
    return " ".join(text.split())
