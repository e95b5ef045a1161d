"""Quantized files beside FP16 files on rtx targets: engines, the smallest, missing compilers."""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq import optional_packages
from qdq.graph.loader import load
from qdq.pipeline import file_choice
from qdq.pipeline.file_choice import (
    FP16,
    QUANTIZED,
    QUANTIZED_FP16,
    FileChoice,
    FileCommands,
    FileEngine,
    FilePair,
    can_choose_files,
    choose_files,
)
from qdq.reports.file_choice_sections import file_choice_sections
from qdq.target import Target
from tests.support.paths import ROOT

NETWORKS = ROOT / "fixtures" / "networks"
SM86 = Target("rtx", 86)
COMMANDS = FileCommands("cast the float model", "cast the quantized model")

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed"
)


def gemm_network() -> onnx.ModelProto:
    """Return two Gemms of 256x256 with a Relu between; `x` is float32 [8,256]."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((256, 256)).astype(np.float32), name)
        for name in ("w", "v")
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first", transB=1),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "v"], ["y"], name="second", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "gemms",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 256])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def pair_of(model: Any, **options: Any) -> FilePair:
    """Return a model and what `quantize` makes of it for SM 8.6."""
    result = qdq.quantize(model, "noise", targets=SM86, **options)
    quantized = msgspec.structs.replace(result.source, model=result.model, stamp=None)
    return FilePair(load(model), quantized, COMMANDS, "INT8", {})


def text_of(choice: FileChoice) -> tuple[str, ...]:
    """Return the lines about a choice."""
    (section,) = file_choice_sections([choice])
    assert section.title == "INT8 or FP16"
    return section.lines


@needs_compiler
def test_fp16_is_smaller_for_a_convolutional_network_but_int8_is_on_tensorrt() -> None:
    pair = pair_of(NETWORKS / "digits_cnn.onnx")

    (choice,) = choose_files(pair, [SM86, Target("trt", 86)])

    quantized, fp16, _ = choice.files
    assert choice.is_larger
    assert choice.smallest == FP16
    assert quantized.bytes > fp16.bytes
    assert quantized.kernels > fp16.kernels
    assert quantized.predicted_bytes < fp16.predicted_bytes
    measured, predicted, use = text_of(choice)
    assert measured == (
        f"rtx:sm86: INT8 moves {quantized.bytes / 1e6:.4g} MB in {quantized.kernels} kernels; "
        f"FP16 alone moves {fp16.bytes / 1e6:.4g} MB in {fp16.kernels} kernels"
    )
    assert predicted.startswith("trt:sm86 (TensorRT, predicted): INT8 moves ")
    assert use == "for rtx:sm86 use: cast the float model"


@needs_compiler
def test_int8_moves_fewer_bytes_for_gemms_and_its_file_is_kept() -> None:
    (choice,) = choose_files(pair_of(gemm_network(), float_type="fp16"), [SM86])

    quantized, fp16 = choice.files
    assert [quantized.file, fp16.file] == [QUANTIZED, FP16]
    assert quantized.bytes < fp16.bytes
    assert choice.smallest == QUANTIZED
    assert text_of(choice)[-1] == "for rtx:sm86 use this file: its engine is the smallest"


@needs_compiler
def test_fp16_around_the_pairs_is_the_smallest_for_a_transformer() -> None:
    (choice,) = choose_files(pair_of(NETWORKS / "digits_attention.onnx"), [SM86])

    assert choice.smallest == QUANTIZED_FP16
    assert "INT8 with FP16 moves" in text_of(choice)[0]
    assert text_of(choice)[-1] == "for rtx:sm86 use: cast the quantized model"


@needs_compiler
def test_fp16_alone_is_named_where_fp32_does_not_build() -> None:
    pair = pair_of(NETWORKS / "digits_cnn.onnx")

    (choice,) = choose_files(pair, [Target("rtx", 75)])

    assert choice.is_larger
    assert "FP32 GEMM is not supported" in choice.files[0].failure
    assert text_of(choice)[0].startswith("rtx:sm75: INT8 does not build; FP16 alone moves ")
    assert "does not build" not in text_of(choice)[2]


def test_without_the_compiler_nothing_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of(gemm_network())
    monkeypatch.setattr(optional_packages, "is_installed", lambda name: False)

    assert not can_choose_files([SM86])
    assert choose_files(pair, [SM86]) == ()
    assert list(file_choice_sections(())) == []


def test_targets_of_tensorrt_have_no_choice() -> None:
    assert not can_choose_files([Target("trt", 86)])
    assert choose_files(pair_of(gemm_network()), [Target("trt", 86)]) == ()


def engine(file: str, size: float, kernels: int, command: str = "") -> FileEngine:
    """Return the engine of a file, with the same prediction."""
    return FileEngine(file, command, kernels, size, "", kernels, size, "")


@pytest.mark.parametrize(
    ("sizes", "smallest"),
    [
        ([(100.0, 9), (104.0, 5), (99.5, 20)], FP16),
        ([(100.0, 9), (106.0, 5), (99.5, 20)], QUANTIZED),
        ([(100.0, 9), (100.0, 9), (90.0, 20)], QUANTIZED_FP16),
        ([(100.0, 9), (100.0, 9), (100.0, 9)], QUANTIZED),
    ],
)
def test_bytes_decide_and_kernels_among_equals(
    sizes: list[tuple[float, int]], smallest: str
) -> None:
    kinds = (QUANTIZED, FP16, QUANTIZED_FP16)
    files = [engine(file, *size) for file, size in zip(kinds, sizes, strict=True)]

    assert file_choice._find_smallest(files) == smallest


@pytest.mark.parametrize(("fp16_bytes", "is_possible"), [(1e6, False), (1.1e6, True)])
def test_fp16_around_the_pairs_saves_half_at_most(fp16_bytes: float, is_possible: bool) -> None:
    quantized, fp16 = engine(QUANTIZED, 2e6, 9), engine(FP16, fp16_bytes, 8)

    assert file_choice._can_be_smallest(quantized, fp16) == is_possible


def test_one_line_has_the_numbers_of_a_file_that_is_smaller_in_both() -> None:
    files = (engine(QUANTIZED, 1e6, 7), engine(FP16, 2e6, 8, "cast"))
    choice = FileChoice("rtx:sm86", "INT8", "trt:sm86", files, QUANTIZED, is_larger=False)

    assert text_of(choice) == (
        "rtx:sm86: INT8 moves 1 MB in 7 kernels; FP16 alone moves 2 MB in 8 kernels",
    )


def test_targets_with_equal_engines_share_their_lines() -> None:
    files = (engine(QUANTIZED, 2e6, 9), engine(FP16, 1e6, 8, "cast"))
    choices = [
        FileChoice(f"rtx:sm{sm}", "INT8", f"trt:sm{sm}", files, FP16, is_larger=True)
        for sm in (86, 120)
    ]

    (section,) = file_choice_sections(choices)

    assert [line.partition(" INT8")[0] for line in section.lines[:2]] == [
        "rtx:sm86, rtx:sm120:",
        "trt:sm86, trt:sm120 (TensorRT, predicted):",
    ]
    assert section.lines[2] == "for rtx:sm86, rtx:sm120 use: cast"


def test_a_larger_file_with_fewer_bytes_is_kept() -> None:
    files = (engine(QUANTIZED, 1e6, 9), engine(FP16, 2e6, 8, "cast"))
    choice = FileChoice("rtx:sm86", "INT8", "trt:sm86", files, QUANTIZED, is_larger=True)

    assert text_of(choice)[-1] == "for rtx:sm86 use this file: its engine is the smallest"


def test_a_prediction_that_refuses_is_said() -> None:
    refused = FileEngine(QUANTIZED, "", 9, 2e6, "", 0, 0.0, "a zero point")
    files = (refused, engine(FP16, 1e6, 8))
    choice = FileChoice("rtx:sm86", "INT8", "trt:sm86", files, FP16, is_larger=True)

    assert "INT8 is refused" in text_of(choice)[1]
    assert text_of(choice)[2].startswith("for rtx:sm86 use the float model as it is")
