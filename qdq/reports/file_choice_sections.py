"""The section about the files that a target could build in place of a quantized one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qdq.pipeline.file_choice import FP16, QUANTIZED, QUANTIZED_FP16, FileChoice, FileEngine
from qdq.reports.sections import Section, count_noun

_MEGABYTE = 1e6


def file_choice_sections(choices: Sequence[FileChoice]) -> Iterator[Section]:
    """Yield one section where there are choices."""
    equal_choices: dict[object, list[FileChoice]] = {}
    for choice in choices:
        equal_choices.setdefault(choice.files, []).append(choice)
    lines: list[str] = []
    for equals in equal_choices.values():
        lines += _describe(equals)
    if lines:
        yield Section(file_choice_title(choices[0].types), tuple(lines))


def file_choice_title(types: str) -> str:
    """Return the title of the section; `types` are those of the pairs, such as ``INT8``."""
    return f"{types} or FP16"


def _describe(equals: Sequence[FileChoice]) -> Iterator[str]:
    """Yield the numbers of targets with equal engines, TensorRT's where FP16 is smaller, and the
    command.
    """
    choice = equals[0]
    targets = ", ".join(item.target for item in equals)
    predicted_targets = ", ".join(item.predicted_target for item in equals)
    types = choice.types
    names = {QUANTIZED: types, FP16: "FP16 alone", QUANTIZED_FP16: f"{types} with FP16"}
    compared = [engine for engine in choice.files if _is_compared(engine, choice)]
    sizes = [_size(names[engine.file], engine) for engine in compared]
    yield f"{targets}: {'; '.join(sizes)}"
    if choice.is_larger:
        predicted = [_predicted_size(names[engine.file], engine) for engine in compared]
        yield f"{predicted_targets} (TensorRT, predicted): {'; '.join(predicted)}"
    smallest = choice.find(choice.smallest)
    if smallest is None:
        return
    if smallest.command:
        yield f"for {targets} use: {smallest.command}"
    elif choice.is_larger:
        file = "this file" if smallest.file == QUANTIZED else "the float model as it is"
        yield f"for {targets} use {file}: its engine is the smallest"


def _is_compared(engine: FileEngine, choice: FileChoice) -> bool:
    """Whether a line has room for an engine: FP16 around the pairs only where it is best."""
    return engine.file != QUANTIZED_FP16 or choice.smallest == QUANTIZED_FP16


def _size(name: str, engine: FileEngine) -> str:
    if engine.failure:
        return f"{name} does not build"
    return _format_size(name, engine.bytes, engine.kernels)


def _predicted_size(name: str, engine: FileEngine) -> str:
    if engine.predicted_failure:
        return f"{name} is refused"
    return _format_size(name, engine.predicted_bytes, engine.predicted_kernels)


def _format_size(name: str, size: float, kernels: int) -> str:
    return f"{name} moves {size / _MEGABYTE:.4g} MB in {count_noun(kernels, 'kernel')}"
