"""Building a model with TensorRT-RTX, without a GPU, and reading back the layers of its engine.

Builds run in a child process that ends with its first refusal, because after a failed build later ones
in the same process come out wrong (seen with TensorRT-RTX 1.7.1); builds after a success come out as
alone. Where the system can fork, the next process is forked from one that has loaded the compiler. The layers come from the message that the
builder logs at VERBOSE severity when profiling verbosity is DETAILED.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import onnx

from qdq.errors import CompilerError
from qdq.index import every_node
from qdq.loading import Source
from qdq.target import Target

_BYTES = {"Float": 4.0, "Half": 2.0, "BFloat16": 2.0, "Int8": 1.0, "UInt8": 1.0, "FP8": 1.0, "Bool": 1.0, "Int32": 4.0, "Int64": 8.0, "Int4": 0.5, "FP4": 0.5}
#: Layers that synchronise streams or branch: no work, and no kernel.
_NO_KERNEL = ("wait", "signal", "cjmp")
#: Data types that are multiplied; others are masks, lengths and indices.
_VALUES = ("Float", "Half", "BFloat16", "FP8", "Int8")
#: A kernel that the compiler generates is named after what it computes, in order: ``__myl_CastMulCastCastMulFc_myl0_1``.
_GENERATED = re.compile(r"__myl_(?P<steps>[A-Za-z0-9]+?)_")
_STEP = re.compile(r"[A-Z][a-z0-9]*")
_PRODUCTS = ("Corr", "Fc")
_QUANTIZING = "Roun"
_FORKS = hasattr(os, "fork")
#: Exit codes of building processes: after a refusal, and plus the signal's number after a crash.
_REFUSED, _CRASHED = 3, 128
#: A layer that only gives memory another name or shape.
NO_OP = "NoOp"
#: A layer that copies a tensor into another type or memory format; a Q or DQ of its own is one too.
REFORMAT = "Reformat"
_INSTALL = "install it with: pip install tensorrt-rtx-cu12"

_TENSOR = re.compile(r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?, "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<rest>.*)"
)
_TOKEN = re.compile(r"qdq_node_(\d+)_")
#: Where in the compiler's own sources a message comes from: of no use to the reader.
_SOURCE_PLACE = re.compile(
    r"\[\S+?\.cpp:\d+[^\]]*\]|\b\w+\.cpp:\d+(?:: ERROR:)?(?:\s+In function \w+: \[\d+\])?|\bIn \w+ at \S+|^\w+::\w+: Error Code \d+: [\w ]+\("
    r"|\bIn operator\(\) at \S+"
)


class LayerTensor(msgspec.Struct, frozen=True):
    """A tensor that an engine layer reads or writes."""

    name: str
    dims: tuple[int, ...]
    dtype: str
    #: How it lies in memory, such as ``linear`` or ``32-wide``; "" where the compiler does not say.
    format: str = ""

    @property
    def bytes(self) -> float:
        """Size in memory, without padding."""
        return math.prod(max(d, 1) for d in self.dims) * _BYTES.get(self.dtype, 4.0)


class EngineLayer(msgspec.Struct, frozen=True):
    """One layer of an engine: what runs, on which types, for which ONNX nodes."""

    name: str
    kind: str
    inputs: tuple[LayerTensor, ...]
    constants: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    #: Labels of the ONNX nodes fused into it, as `GraphIndex` gives them.
    nodes: tuple[str, ...]
    #: For a predicted layer, the name of the documented rule that it follows.
    follows: str = ""

    @property
    def bytes(self) -> float:
        """Bytes of everything it reads and writes; none for a layer that only gives memory another name."""
        return 0.0 if self.kind == NO_OP else sum(t.bytes for t in (*self.inputs, *self.constants, *self.outputs))

    def multiplies(self, dtype: str) -> bool:
        """Whether it multiplies its first input with a constant or its second input in `dtype`, such as ``Int8``; masks aside.

        A generated kernel that casts before its product reads INT8 and multiplies floats: that does
        not count. One that rounds and casts, and no more, quantizes its input itself: that does.
        """
        before = self._before_product()
        casts = [i for i, step in enumerate(before) if step == "Cast"]
        if any(before[i - 1] != _QUANTIZING for i in casts):
            return False
        types = [t.dtype for t in self.inputs if t.dtype in _VALUES]
        if not casts and types[:1] != [dtype]:
            return False
        return types[1:2] == [dtype] or any(t.dtype == dtype for t in self.constants)

    def _before_product(self) -> list[str]:
        """Return the steps of a generated kernel up to its product: none for other kernels, a cast for one without a product."""
        found = _GENERATED.match(self.name)
        steps = _STEP.findall(found["steps"]) if found else []
        product = next((i for i, step in enumerate(steps) if step in _PRODUCTS), None)
        return steps[:product] if product is not None else ["", "Cast"] if steps else []

    def __str__(self) -> str:
        parts = (self.inputs, self.constants, self.outputs)
        return f"{self.kind} " + " -> ".join(",".join(t.dtype for t in part) or "-" for part in parts)


class Engine(msgspec.Struct, frozen=True):
    """What the compiler made of a model for one target."""

    target: Target
    #: Compiler and version.
    compiler: str
    layers: tuple[EngineLayer, ...] = ()
    #: The compiler's words where it refused, else "".
    failure: str = ""
    #: Labels of the nodes that these words name.
    refused: tuple[str, ...] = ()

    @property
    def kernels(self) -> int:
        """How many kernels one inference starts."""
        return sum(layer.kind != NO_OP for layer in self.layers)

    @property
    def reformats(self) -> int:
        """How many layers only convert a tensor to another type or memory format, stand-alone Q and DQ among them."""
        return sum(layer.kind == REFORMAT for layer in self.layers)

    @property
    def bytes(self) -> float:
        """Bytes that all layers read and write in one inference."""
        return sum(layer.bytes for layer in self.layers)


class _Request(msgspec.Struct):
    model: str
    answer: str
    sm: int


class _Answer(msgspec.Struct):
    compiler: str
    layers: str = ""
    failure: str = ""


def build_engine(model: onnx.ModelProto | Source, target: Target, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Engine:
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

    def build(self, model: onnx.ModelProto | Source, target: Target, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Engine:
        """Return the engine of a model as `build_engine` does."""
        if importlib.util.find_spec("tensorrt_rtx") is None:
            raise CompilerError(f"target {target}: TensorRT-RTX is not installed; {_INSTALL}")
        proto = model.model if isinstance(model, Source) else model
        labels = [label for label, _ in every_node(proto.graph)]
        with tempfile.TemporaryDirectory(prefix="qdq-") as folder:
            path = write_compilable(model, shapes or {}, Path(folder))
            answer = self._answer(_Request(str(path), f"{folder}/answer.json", target.sm), target)
        layers = tuple(read_layers(answer.layers, labels))
        failure = _with_labels(_without_places(answer.failure), labels)
        return Engine(target, answer.compiler, layers, failure, token_labels(answer.failure, labels))

    def _answer(self, request: _Request, target: Target) -> _Answer:
        process = self._process = self._process or self._start()
        written = Path(request.answer)
        if _ask(process, request) and written.exists():
            answer = msgspec.json.decode(written.read_bytes(), type=_Answer)
            if answer.failure and not _FORKS:
                self._end()
            return answer
        code = self._end()
        if code < 0 or code > _CRASHED:
            return _Answer("TensorRT-RTX", failure=f"the compiler crashed on this model (signal {-code if code < 0 else code - _CRASHED})")
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise CompilerError(f"target {target}: the compiler's process could not start: {last[0]}")

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "qdq.engine"]
        self._errors.seek(0)
        self._errors.truncate()
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment)

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        with contextlib.suppress(OSError):
            process.communicate()
        return process.wait()


def _ask(process: subprocess.Popen[bytes], request: _Request) -> bool:
    """Send a request to a compiling process and wait; return whether it answered."""
    if process.stdin is None or process.stdout is None:
        return False
    try:
        process.stdin.write(msgspec.json.encode(request) + b"\n")
        process.stdin.flush()
    except OSError:
        return False
    return process.stdout.readline() != b""


def read_layers(text: str, labels: list[str]) -> Iterator[EngineLayer]:
    """Yield the layers in the builder's ``Layers:`` message; `labels` name the nodes that its tokens stand for."""
    for line in text.splitlines():
        found = _LAYER.match(line.strip())
        if not found or found["kind"] in _NO_KERNEL:
            continue
        yield EngineLayer(
            _with_labels(found["name"], labels),
            found["kind"],
            _tensors(found["inputs"]),
            _tensors(found["constants"] or ""),
            _tensors(found["outputs"]),
            token_labels(found["rest"], labels),
        )


def token_labels(text: str, labels: list[str]) -> tuple[str, ...]:
    """Return the labels of the nodes whose tokens stand in a text, each once, in order."""
    return tuple(dict.fromkeys(labels[int(token[1])] for token in _TOKEN.finditer(text)))


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(LayerTensor(t["name"], tuple(int(d) for d in t["dims"].split(",") if d), t["dtype"]) for t in _TENSOR.finditer(text))


def write_compilable(model: onnx.ModelProto | Source, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> Path:
    """Write the copy of a model that the compiler reads into a folder, its external data within reach, and return its path."""
    path = folder / "model.onnx"
    path.write_bytes(compilable(model.model if isinstance(model, Source) else model, shapes).SerializeToString())
    if isinstance(model, Source) and model.folder:
        _link(model, folder)
    return path


def compilable(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return a copy for the compiler: its inputs of fixed shape, its nodes named so that any log can be read.

    Dynamic dimensions that no shape is given for become 1. Writing the shapes into the copy, and
    not into an optimization profile, keeps unlike dimensions of one name (``?``) apart.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for i, (_, node) in enumerate(list(every_node(copy.graph))):
        node.name = f"qdq_node_{i}_"
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, dim in enumerate(dims):
            wanted = shapes[value.name][axis] if len(shapes.get(value.name, ())) == len(dims) else dim.dim_value
            dim.dim_value = max(int(wanted), 1)
    return copy


def _with_labels(text: str, labels: list[str]) -> str:
    return _TOKEN.sub(lambda token: labels[int(token[1])], text)


def _without_places(failure: str) -> str:
    return " ".join(_SOURCE_PLACE.sub(" ", failure).strip(" .").split())


def _link(source: Source, folder: Path) -> None:
    """Make the external data files of a model reachable from the copy in `folder`."""
    for name in source.external_files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((source.folder or folder).resolve() / name)


def _child() -> None:
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
    while _FORKS:
        worker = os.fork()
        if not worker:
            os._exit(_REFUSED if _refuses_one(trt, answered) else 0)
        _, status = os.waitpid(worker, 0)
        if os.WIFSIGNALED(status):
            os._exit(_CRASHED + os.WTERMSIG(status))
        if os.WEXITSTATUS(status) != _REFUSED:
            return
    _refuses_one(trt, answered)


def _refuses_one(trt: Any, answered: IO[bytes]) -> bool:
    """Answer requests until one is refused or there are no more; return whether one was refused."""
    for line in iter(sys.stdin.buffer.readline, b""):
        failed = _compile(msgspec.json.decode(line, type=_Request), trt)
        answered.write(b"\n")
        if failed:
            return True
    return False


def _compile(request: _Request, trt: Any) -> bool:
    """Write the answer to a request; return whether the compiler refused."""
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import engine_bytes_from_network, get_trt_logger, network_from_onnx_path
    from polygraphy.exception import PolygraphyException

    answer = _Answer(f"TensorRT-RTX {trt.__version__}")
    errors: list[str] = []

    def keep(severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.ERROR:
            errors.append(message)
        elif message.startswith("Layers:"):
            answer.layers = message

    get_trt_logger().log = keep
    try:
        config = CreateConfigRTX(compute_capabilities=[divmod(request.sm, 10)], profiling_verbosity=trt.ProfilingVerbosity.DETAILED)
        engine_bytes_from_network(network_from_onnx_path(request.model), config=config)
    except PolygraphyException as error:
        answer.failure = next((line for line in (errors[-1:] or str(error).splitlines())), "refused").strip()
    Path(request.answer).write_bytes(msgspec.json.encode(answer))
    return bool(answer.failure)


if __name__ == "__main__":
    _child()
