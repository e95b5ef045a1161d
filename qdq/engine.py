"""Building a model with TensorRT-RTX, without a GPU, and reading back the layers of its engine.

Each build runs in a process of its own, because after a failed build later ones in the same
process come out wrong (seen with TensorRT-RTX 1.7.1). The layers come from the message that the
builder logs at VERBOSE severity when profiling verbosity is DETAILED.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import onnx

from qdq.errors import CompilerError
from qdq.index import every_node
from qdq.loading import Source
from qdq.target import Target

_BYTES = {"Float": 4.0, "Half": 2.0, "BFloat16": 2.0, "Int8": 1.0, "UInt8": 1.0, "FP8": 1.0, "Bool": 1.0, "Int32": 4.0, "Int64": 8.0, "Int4": 0.5, "FP4": 0.5}
#: Layers that synchronise streams or branch: no work, and no kernel.
_NO_KERNEL = ("wait", "signal", "cjmp")
_INSTALL = "install it with: pip install tensorrt-rtx-cu12"

_TENSOR = re.compile(r"Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_LAYER = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?, "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<rest>.*)"
)
_TOKEN = re.compile(r"qdq_node_(\d+)_")
#: Where in the compiler's own sources a message comes from: of no use to the reader.
_SOURCE_PLACE = re.compile(r"\[\S+?\.cpp:\d+[^\]]*\]|\bIn \w+ at \S+|^\w+::\w+: Error Code \d+: [\w ]+\(|\bIn operator\(\) at \S+")


class LayerTensor(msgspec.Struct, frozen=True):
    """A tensor that an engine layer reads or writes."""

    name: str
    dims: tuple[int, ...]
    dtype: str

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

    @property
    def bytes(self) -> float:
        """Bytes of everything it reads and writes."""
        return sum(t.bytes for t in (*self.inputs, *self.constants, *self.outputs))

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

    @property
    def kernels(self) -> int:
        """How many kernels one inference starts."""
        return len(self.layers)

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
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise CompilerError(f"target {target}: TensorRT-RTX is not installed; {_INSTALL}")
    proto = model.model if isinstance(model, Source) else model
    labels = [label for label, _ in every_node(proto.graph)]
    with tempfile.TemporaryDirectory(prefix="qdq-") as folder:
        path = write_compilable(model, shapes or {}, Path(folder))
        answer = _run_child(_Request(str(path), f"{folder}/answer.json", target.sm), target)
    layers = tuple(read_layers(answer.layers, labels))
    return Engine(target, answer.compiler, layers, _with_labels(_without_places(answer.failure), labels))


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
    return " ".join(_SOURCE_PLACE.sub(" ", failure).strip(" .()").split())


def _link(source: Source, folder: Path) -> None:
    """Make the external data files of a model reachable from the copy in `folder`."""
    for name in source.external_files:
        link = folder / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((source.folder or folder).resolve() / name)


def _run_child(request: _Request, target: Target) -> _Answer:
    command = [sys.executable, "-m", "qdq.engine"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(command, input=msgspec.json.encode(request), capture_output=True, check=False, env=environment)
    answer = Path(request.answer)
    if answer.exists():
        return msgspec.json.decode(answer.read_bytes(), type=_Answer)
    if done.returncode < 0:
        return _Answer("TensorRT-RTX", failure=f"the compiler crashed on this model (signal {-done.returncode})")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    raise CompilerError(f"target {target}: the compiler's process could not start: {last[0]}")


def _child() -> None:
    """Build the model that standard input names, and write the answer beside it."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=_Request)
    import polygraphy.config

    polygraphy.config.USE_TENSORRT_RTX = True
    import tensorrt_rtx as trt
    from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
    from polygraphy.backend.trt import engine_bytes_from_network, get_trt_logger, network_from_onnx_path
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.CRITICAL
    answer = _Answer(f"TensorRT-RTX {trt.__version__}")
    errors: list[str] = []

    def keep(severity: trt.ILogger.Severity, message: str) -> None:
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


if __name__ == "__main__":
    _child()
