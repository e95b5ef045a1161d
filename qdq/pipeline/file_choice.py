"""The files that a target could build in place of a quantized one: FP16 around its pairs, or alone.

TensorRT-RTX compiles INT8 convolutions to more kernels and bytes than FP16 ones, TensorRT does not.
So each file is compiled for the rtx target, and predicted for TensorRT on the same GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import msgspec

from qdq.engines.engine import Engine
from qdq.engines.prediction.predictor import predict_engine
from qdq.engines.rtx_compiler import Compiler
from qdq.errors import QdqError
from qdq.graph.metadata import FLOAT_KEY
from qdq.graph.source import Source
from qdq.optional_packages import explain_missing
from qdq.precision.cast_model import CastRequest, cast_source
from qdq.rules.rule_files import choose_float_rules
from qdq.target import Target
from qdq.validation.engine_report import EngineReport

#: The kinds of files.
QUANTIZED = "quantized"
FP16 = "fp16"
QUANTIZED_FP16 = "quantized-fp16"

#: Engines whose bytes differ by less than this factor are ranked by kernels.
_EQUAL_BYTES = 1.05

#: The factor by which FP16 shortens FP32.
_MOST_SAVED = 2


class FileCommands(msgspec.Struct, frozen=True):
    """The commands that write the other files of a choice."""

    #: For the float model in FP16.
    fp16: str
    #: For FP16 around the pairs.
    quantized_fp16: str


class FileEngine(msgspec.Struct, frozen=True):
    """The engine of one file, as TensorRT-RTX compiles it and as TensorRT's is predicted."""

    #: ``quantized`` for the quantized file as it is, ``fp16`` for the float model in FP16,
    #: ``quantized-fp16`` for FP16 around the pairs.
    file: str
    #: The command that writes it; "" for a file that is there.
    command: str
    #: Kernels of the engine.
    kernels: int
    #: Bytes that its layers read and write in one inference.
    bytes: float
    #: Why there is no engine, else "".
    failure: str
    #: Kernels of TensorRT's engine, predicted.
    predicted_kernels: int
    #: Bytes of TensorRT's engine, predicted.
    predicted_bytes: float
    #: Why TensorRT is predicted to refuse the file, else "".
    predicted_failure: str


class FileChoice(msgspec.Struct, frozen=True):
    """The engines of a quantized file and of the FP16 files in its place, for one rtx target."""

    target: str
    #: The types of the pairs, such as ``INT8``.
    types: str
    #: The target of the predictions: TensorRT on the same GPU.
    predicted_target: str
    #: The quantized file first. ``quantized-fp16`` is absent where the float part is cast already,
    #: and where FP16 alone moves at most half of the quantized file's bytes.
    files: tuple[FileEngine, ...]
    #: The `file` with the smallest engine: of those within 5 % of the fewest bytes the one with the
    #: fewest kernels; "" where none builds.
    smallest: str
    #: Whether the quantized file's engine moves more bytes or takes more kernels than FP16 alone,
    #: or only FP16 builds.
    is_larger: bool

    def find(self, file: str) -> FileEngine | None:
        """Return the engine of a kind of file, None where it is absent."""
        for engine in self.files:
            if engine.file == file:
                return engine
        return None


def can_choose_files(targets: Iterable[Target]) -> bool:
    """Whether there is an rtx target and the compiler for it."""
    has_rtx = any(target.backend == "rtx" for target in targets)
    return has_rtx and not explain_missing("tensorrt_rtx", "polygraphy")


class FilePair(msgspec.Struct, frozen=True):
    """A float model, the Q/DQ model that was made from it, and how they are built."""

    float_source: Source
    quantized_source: Source
    commands: FileCommands
    #: The types of the pairs, such as ``INT8``.
    types: str
    #: Shapes that fix dynamic dimensions, by input name.
    shapes: Mapping[str, tuple[int, ...]]


def choose_files(
    pair: FilePair, targets: Iterable[Target], reports: Iterable[EngineReport] = ()
) -> tuple[FileChoice, ...]:
    """Return the choice of files for each rtx target; empty without the compiler.

    The casts are those of the pair's commands: by the shipped rules, without ranges of activations.
    `reports` have the quantized model's engines where these were compiled already. Raises
    CompilerError where the compiler ends without an answer.
    """
    rtx_targets = [target for target in targets if target.backend == "rtx"]
    if not can_choose_files(rtx_targets):
        return ()
    reports_by_target = {report.target: report for report in reports}
    candidates = _Candidates(pair)
    choices: list[FileChoice] = []
    with Compiler() as compiler:
        for target in rtx_targets:
            build = _Build(target, pair.shapes, compiler)
            files = _compile_files(build, candidates, reports_by_target.get(str(target)))
            choices.append(_choose(target, pair.types, tuple(files)))
    return tuple(choices)


def _compile_files(
    build: _Build, candidates: _Candidates, report: EngineReport | None
) -> Iterator[FileEngine]:
    """Yield the engines of the files that could be the smallest, the quantized one first."""
    quantized = build.compile(candidates.quantized, report)
    yield quantized
    fp16 = build.compile(candidates.fp16)
    yield fp16
    if _can_be_smallest(quantized, fp16) and candidates.quantized_fp16 is not None:
        yield build.compile(candidates.quantized_fp16)


def _can_be_smallest(quantized: FileEngine, fp16: FileEngine) -> bool:
    """Whether FP16 around the pairs could move fewer bytes than FP16 alone.

    It halves the bytes of the quantized file at most, where all of them are FP32.
    """
    if quantized.failure or fp16.failure:
        return True
    return quantized.bytes / _MOST_SAVED < fp16.bytes


class _Candidates:
    """The files that could be built; each is cast once, when it is needed."""

    def __init__(self, pair: FilePair) -> None:
        self._pair = pair
        self.quantized = _Candidate(QUANTIZED, "", pair.quantized_source)

    @cached_property
    def fp16(self) -> _Candidate:
        """The float model in FP16."""
        return _cast(FP16, self._pair.commands.fp16, self._pair.float_source)

    @cached_property
    def quantized_fp16(self) -> _Candidate | None:
        """The quantized model with FP16 around its pairs, None where that is there already."""
        source = self._pair.quantized_source
        if _is_cast(source):
            return None
        candidate = _cast(QUANTIZED_FP16, self._pair.commands.quantized_fp16, source)
        return candidate if candidate.command else None


class _Candidate(msgspec.Struct, frozen=True):
    """A file that could be built."""

    file: str
    command: str
    #: None where it cannot be made.
    source: Source | None
    failure: str = ""


class _Build(msgspec.Struct, frozen=True):
    """What engines are built with."""

    target: Target
    shapes: Mapping[str, tuple[int, ...]]
    compiler: Compiler

    def compile(self, candidate: _Candidate, report: EngineReport | None = None) -> FileEngine:
        """Return the engines of a file; `report` has the one that was compiled already."""
        engine: Engine | EngineReport
        if candidate.source is None:
            engine = prediction = Engine(self.target, "", failure=candidate.failure)
        else:
            engine = report or self.compiler.build(candidate.source, self.target, self.shapes)
            prediction = self._predict(candidate.source)
        return FileEngine(
            candidate.file,
            candidate.command,
            engine.kernels,
            engine.bytes,
            engine.failure,
            prediction.kernels,
            prediction.bytes,
            prediction.failure,
        )

    def _predict(self, source: Source) -> Engine:
        """Return TensorRT's engine; a model that the prediction cannot read is a refusal."""
        target = _predicted_target(self.target)
        try:
            return predict_engine(source, target, self.shapes)
        except QdqError as error:
            return Engine(target, "", failure=str(error))


def _predicted_target(target: Target) -> Target:
    return Target("trt", target.sm)


def _cast(file: str, command: str, source: Source) -> _Candidate:
    """Return the FP16 copy of a model; its command is "" where nothing is left to cast."""
    request = CastRequest(rules=choose_float_rules(None))
    try:
        result = cast_source(source, request)
    except QdqError as error:
        return _Candidate(file, command, None, str(error))
    is_short = result.plan.cast == 0
    return _Candidate(file, "" if is_short else command, result.output_source)


def _is_cast(source: Source) -> bool:
    """Whether qdq cast the float part of a model already."""
    return any(entry.key == FLOAT_KEY for entry in source.model.metadata_props)


def _choose(target: Target, types: str, files: tuple[FileEngine, ...]) -> FileChoice:
    """Return the choice among the engines of the files for one target."""
    return FileChoice(
        str(target),
        types,
        str(_predicted_target(target)),
        files,
        _find_smallest(files),
        _is_larger(*files[:2]),
    )


def _find_smallest(files: Iterable[FileEngine]) -> str:
    """Return the kind of the file with the smallest engine, "" where none builds."""
    built = [engine for engine in files if not engine.failure]
    if not built:
        return ""
    most_bytes = min(engine.bytes for engine in built) * _EQUAL_BYTES
    equals = [engine for engine in built if engine.bytes <= most_bytes]
    return min(equals, key=lambda engine: (engine.kernels, engine.bytes)).file


def _is_larger(quantized: FileEngine, fp16: FileEngine) -> bool:
    if quantized.failure or fp16.failure:
        return not fp16.failure
    return quantized.bytes > fp16.bytes or quantized.kernels > fp16.kernels
