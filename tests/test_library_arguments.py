"""What the library's functions take, and the errors that name what they do not take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import qdq
from tests.support.cli_runner import save, tiny_model
from tests.support.sample_values import values, with_two_inputs

SAMPLES = [{"x": values(1)} for _ in range(3)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a tiny model."""
    return str(save(tiny_model(), tmp_path_factory.mktemp("library") / "model.onnx"))


@pytest.fixture(scope="module")
def result(model: str) -> qdq.Quantized:
    """Return the tiny model quantized."""
    return qdq.quantize(model, SAMPLES)


def same_model(first: qdq.Quantized, second: qdq.Quantized) -> bool:
    return bool(first.model.SerializeToString() == second.model.SerializeToString())


def test_text_is_taken_for_targets_rules_and_one_glob(model: str) -> None:
    records = qdq.plan(
        model,
        rules=qdq.load_rules(["tensorrt"]),
        targets=[qdq.parse_target("rtx:sm86")],
        leave_float=["gemm"],
        profiles=[qdq.parse_profile("x=2x4x8x8")],
    )
    for texts in (
        ("tensorrt", "rtx:sm86", "gemm", "x=2x4x8x8"),
        (["tensorrt"], ["rtx:sm86"], ["gemm"], ["x=2x4x8x8"]),
    ):
        rules, targets, globs, profiles = texts
        plan = qdq.plan(model, rules=rules, targets=targets, leave_float=globs, profiles=profiles)
        assert plan == records


def test_check_and_fix_take_text_too(result: qdq.Quantized) -> None:
    arguments: dict[str, Any] = {"rules": "tensorrt", "targets": "rtx:sm86", "leave_float": "gemm"}
    records: dict[str, Any] = {
        "rules": qdq.load_rules(["tensorrt"]),
        "targets": [qdq.parse_target("rtx:sm86")],
        "leave_float": ["gemm"],
    }
    assert qdq.check(result.model, **arguments) == qdq.check(result.model, **records)
    assert qdq.check(result.model, **arguments) != ()
    fixed, expected = qdq.fix(result.model, **arguments), qdq.fix(result.model, **records)
    assert fixed is not None
    assert expected is not None
    assert fixed.model == expected.model


def test_arrays_are_taken_as_data(model: str) -> None:
    array = np.concatenate([sample["x"] for sample in SAMPLES])
    by_list = qdq.quantize(model, SAMPLES)
    assert same_model(qdq.quantize(model, array), by_list)
    assert same_model(qdq.quantize(model, {"x": array}), by_list)
    assert qdq.observe(model, by_list.plan, qdq.Subset(array, 2)).samples == 2


def test_one_array_cannot_feed_two_inputs() -> None:
    with pytest.raises(qdq.QdqError, match="cannot feed the 2 inputs"):
        qdq.quantize(with_two_inputs(), values(2))


def test_files_are_taken_by_text(tmp_path: Path, result: qdq.Quantized) -> None:
    path = str(tmp_path / "out.onnx")
    qdq.save(result.model, result.source, path)
    assert onnx.load(path) == result.model
    ranges = qdq.read_given(path)
    assert isinstance(ranges, qdq.GivenRanges)


def test_ranges_are_taken_as_a_mapping(model: str) -> None:
    tensors = {"x": 1, "f": np.float32(2.0)}
    by_record = qdq.quantize(model, SAMPLES, given=qdq.given_by_hand({"x": 1.0, "f": 2.0}))
    assert same_model(qdq.quantize(model, SAMPLES, given=tensors), by_record)


REFUSED: dict[str, tuple[Callable[[str, qdq.Quantized], object], str]] = {
    "target": (lambda m, r: qdq.plan(m, targets=[86]), "targets|target"),
    "targets": (lambda m, r: qdq.plan(m, targets=86), "targets: the argument is of type int"),
    "rules": (lambda m, r: qdq.plan(m, rules=5), "rules: the argument is of type int"),
    "glob": (lambda m, r: qdq.plan(m, leave_float=[5]), "leave_float: the argument is of type int"),
    "profile": (lambda m, r: qdq.plan(m, profiles=5), "profiles: the argument is of type int"),
    "batch": (lambda m, r: qdq.quantize(m, SAMPLES, batch="a"), "batch: the argument is of type str"),
    "batch 0": (lambda m, r: qdq.quantize(m, SAMPLES, batch=0), "batch: the argument is 0"),
    "method": (lambda m, r: qdq.quantize(m, SAMPLES, method=5), "method: the argument is of type"),
    "weights": (lambda m, r: qdq.quantize(m, SAMPLES, weights=5), "weights: the argument is of"),
    "given": (lambda m, r: qdq.quantize(m, SAMPLES, given="x"), "given: .* qdq.read_given"),
    "existing": (lambda m, r: qdq.quantize(m, SAMPLES, existing=[]), "is not a mode"),
    "observing": (lambda m, r: qdq.quantize(m, SAMPLES, observing="cpu"), "observing: the argument"),
    "progress": (lambda m, r: qdq.quantize(m, SAMPLES, progress=1), "progress: the argument"),
    "planned": (lambda m, r: qdq.quantize(m, SAMPLES, planned=1), "planned: the argument"),
    "builds": (lambda m, r: qdq.quantize(m, SAMPLES, until_it_builds=3), "until_it_builds: the"),
    "data": (lambda m, r: qdq.quantize(m, 5), "they are of type int"),
    "bytes": (lambda m, r: qdq.quantize(m, b"x"), "they are of type bytes"),
    "NUL": (lambda m, r: qdq.load("a\0b"), "cannot be the path of a file"),
    "half a character": (lambda m, r: qdq.load("a\ud800"), "cannot be the path of a file"),
    "model": (lambda m, r: qdq.load(5), "cannot be loaded from int"),
    "save": (lambda m, r: qdq.save(r.source, r.source, "x"), "model: the argument is of type Source"),
    "source": (lambda m, r: qdq.save(r.model, m, "x"), "source: the argument is of type str"),
    "path": (lambda m, r: qdq.save(r.model, r.source, 5), "path: the argument is of type int"),
    "samples": (lambda m, r: qdq.Subset(SAMPLES, -2, 0), "Subset.samples: the argument is -2"),
    "seed": (lambda m, r: qdq.Subset(SAMPLES, 2, "a"), "Subset.seed: the argument is of type str"),
    "part": (lambda m, r: qdq.Part(5, 3), "there is no part 5/3"),
    "part 0": (lambda m, r: qdq.Part(0, 3), "Part.number: the argument is 0"),
    "range": (lambda m, r: qdq.given_by_hand({"x": "1"}), "tensor 'x': the argument is of type str"),
    "huge range": (lambda m, r: qdq.given_by_hand({"x": 10**400}), "a range of inf"),
    "ranges": (lambda m, r: qdq.given_by_hand([1.0]), "ranges: the argument is of type list"),
    "merge": (lambda m, r: qdq.merge([r.plan]), "ranges: the argument is of type Plan"),
    "plan": (lambda m, r: qdq.calibrate(m, "plan.yaml", SAMPLES), "plan: the argument is of type"),
    "apply": (lambda m, r: qdq.apply(m, r.plan, "s.json"), "scales: the argument is of type str"),
    "explain": (lambda m, r: qdq.explain(m, r.plan, "tensorrt", 5), "name: the argument is of type"),
    "other rules": (lambda m, r: qdq.explain(m, r.plan, [], "conv"), "is not among them"),
    "shapes": (lambda m, r: qdq.validate(m, r.model, shapes={"x": "1x4"}), "shapes of 'x': the"),
    "size": (lambda m, r: qdq.validate(m, r.model, shapes={"x": [0]}), "shapes of 'x': the argument is 0"),
    "thresholds": (lambda m, r: qdq.Thresholds(snr_db="30"), "Thresholds.snr_db: the argument"),
    "target text": (lambda m, r: qdq.parse_target(5), "target: the argument is of type int"),
    "profile text": (lambda m, r: qdq.parse_profile(5), "profile: the argument is of type int"),
    "folder": (lambda m, r: qdq.Images(5, "imagenet"), "Images.folder: the argument is of type int"),
    "cores": (lambda m, r: qdq.Observing(cores="2"), "Observing.cores: the argument is of type"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_argument_is_refused_by_name(name: str, model: str, result: qdq.Quantized) -> None:
    call, message = REFUSED[name]
    with pytest.raises(qdq.QdqError, match=message):
        call(model, result)
