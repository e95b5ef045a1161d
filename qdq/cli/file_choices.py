"""The choice between a quantized file and FP16 files, for the commands that show it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from qdq.cli.data_options import DataOptions
from qdq.errors import CompilerError
from qdq.graph.bodies import all_tensors
from qdq.graph.index import GraphIndex
from qdq.graph.source import Source
from qdq.graph.tensor_sizes import count_value_bytes
from qdq.pipeline.file_choice import (
    FileChoice,
    FileCommands,
    FilePair,
    can_choose_files,
    choose_files,
)
from qdq.pipeline.quantize_model import Quantized
from qdq.planning.decisions import Plan
from qdq.quantizer import ELEMENT_TYPES
from qdq.reports.file_choice_sections import file_choice_title
from qdq.reports.sections import Section
from qdq.validation.validator import Validation, fix_shapes

#: The most bytes of weights of a float model whose engines `quantize` compiles unasked. Larger
#: models take longer to compile than to calibrate (docs/targets.md).
MOST_UNASKED_BYTES = 32_000_000

#: The most nodes of such a model: an engine of 2,000 nodes takes seconds, of 10,000 minutes.
MOST_UNASKED_NODES = 2_000


def cast_command(model: Path) -> str:
    """Return the command that casts a file to FP16."""
    output = model.with_suffix(".fp16.onnx")
    return shlex.join(("qdq", "cast", str(model), "-o", str(output)))


def fix_input_shapes(
    source: Source, shapes: Mapping[str, tuple[int, ...]], data: DataOptions
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that engines are built for; samples are read for open dimensions alone."""
    if not _has_open_dimensions(source):
        return dict(shapes)
    index = GraphIndex(source)
    return fix_shapes(index, dict(shapes), data.open_feeds(index, optional=True))


class QuantizedFiles(msgspec.Struct, frozen=True):
    """The files of a run of `quantize`, and what its engines are built with."""

    model: Path
    output: Path
    data: DataOptions
    #: Shapes of inputs from ``--shapes``, by name.
    shapes: Mapping[str, tuple[int, ...]]

    def choose(
        self, result: Quantized, validation: Validation | None
    ) -> tuple[FileChoice, ...] | msgspec.UnsetType:
        """Return the choices; unset where none is compiled.

        That is without an rtx target or the compiler, where it fails, and for a large model unless
        it is validated.
        """
        targets = result.plan.targets
        if not can_choose_files(targets):
            return msgspec.UNSET
        if validation is None and not _is_quick_to_build(result):
            return msgspec.UNSET
        quantized = msgspec.structs.replace(result.source, model=result.model, stamp=None)
        pair = FilePair(
            result.source,
            quantized,
            self._make_commands(result),
            list_types(result.plan),
            fix_input_shapes(result.source, self.shapes, self.data),
        )
        try:
            return choose_files(pair, targets, validation.engines if validation else ())
        except CompilerError:
            return msgspec.UNSET

    def make_hint(self, result: Quantized, validation: Validation | None) -> Iterator[Section]:
        """Yield the command that compares the files of a large model that was not validated."""
        targets = [str(target) for target in result.plan.targets if target.backend == "rtx"]
        is_compiled = validation is not None or _is_quick_to_build(result)
        if is_compiled or not can_choose_files(result.plan.targets):
            return
        options = [f"--target={target}" for target in targets]
        for name, sizes in fix_input_shapes(result.source, self.shapes, self.data).items():
            options.append(f"--shapes={name}={'x'.join(map(str, sizes))}")
        command = shlex.join(("qdq", "validate", str(self.model), str(self.output), *options))
        line = f"FP16 alone may be smaller on {', '.join(targets)}; to compare: {command}"
        yield Section(file_choice_title(list_types(result.plan)), (line,))

    def _make_commands(self, result: Quantized) -> FileCommands:
        """Return the commands that write the FP16 files."""
        around = f"{shlex.join(('qdq', 'quantize', str(self.model)))} ... --float fp16"
        if not result.existing:
            return FileCommands(cast_command(self.model), around)
        stripped = self.model.with_suffix(".float.onnx")
        strip = shlex.join(("qdq", "strip", str(self.model), "-o", str(stripped)))
        return FileCommands(f"{strip} && {cast_command(stripped)}", around)


def _is_quick_to_build(result: Quantized) -> bool:
    """Whether the engines of a model are compiled without being requested."""
    source = result.source
    if source.external_files or len(source.model.graph.node) > MOST_UNASKED_NODES:
        return False
    size = sum(count_value_bytes(tensor) for tensor in all_tensors(source.model.graph))
    return size <= MOST_UNASKED_BYTES


def list_types(plan: Plan) -> str:
    """Return the types of a plan's pairs, such as ``INT8``."""
    dtypes = {placement.quantizer.dtype for placement in plan.placements}
    labels = sorted(ELEMENT_TYPES[dtype].label for dtype in dtypes)
    return " and ".join(labels) or "INT8"


def _has_open_dimensions(source: Source) -> bool:
    """Whether an input of a model has a dimension of unknown size."""
    for graph_input in source.model.graph.input:
        for dim in graph_input.type.tensor_type.shape.dim:
            if not dim.dim_value:
                return True
    return False
