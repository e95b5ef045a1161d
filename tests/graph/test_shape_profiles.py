"""Shapes of an optimization profile: how they are written, what they decide, and that nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import qdq
from qdq.errors import UsageError
from qdq.graph.shape_profiles import Profile, extreme_shapes, optimal_shapes, parse_profile
from qdq.rules.rule_files import load_rules
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import build, node, noise

NARROW = load_rules(["narrow-in-float"])


def product() -> onnx.ModelProto:
    """Return a MatMul of 32 to 32 values for any number of rows."""
    return build(
        [node("MatMul", ["x", "w"], "y", name="product")],
        {"x": ["rows", 32]},
        ["y"],
        {"w": noise(32, 32)},
    )


def quantized(*shapes: str) -> set[str]:
    """Return the nodes that get a pair under narrow-in-float and some profiles."""
    plan = qdq.plan(product(), rules=NARROW, profiles=[parse_profile(s) for s in shapes])
    return {p.edge.node for p in plan.placements}


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x=4x32", ((4, 32),) * 3),
        ("x=1x32/4x32/8x32", ((1, 32), (4, 32), (8, 32))),
        ("in=put=7", ((7,),) * 3),
    ],
)
def test_a_profile_is_one_shape_or_three(text: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    profile = parse_profile(text)
    assert (profile.min, profile.opt, profile.max) == shapes
    assert str(profile) == text


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "=4x32",
        "x=4x32/8x32",
        "x=0x32",
        "x=4x",
        "x=8x32/4x32/9x32",
        "x=4x32/8x32/6x32",
        "x=4/4x32/4x32",
        f"x=4x{2**63}",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shapes"):
        parse_profile(text)


def test_the_usual_shapes_and_where_the_ends_differ() -> None:
    fixed, ranged = Profile("x", (4,), (4,), (4,)), Profile("z", (1,), (2,), (3,))
    assert optimal_shapes([fixed, ranged]) == {"x": (4,), "z": (2,)}
    assert extreme_shapes([fixed]) == {}
    assert extreme_shapes([fixed, ranged]) == {
        "min": {"x": (4,), "z": (1,)},
        "max": {"x": (4,), "z": (3,)},
    }


def test_a_rule_about_shapes_goes_by_the_profile() -> None:
    assert quantized() == {"product"}
    assert quantized("x=8x32") == {"product"}
    assert quantized("x=1x32") == set()


def test_a_plan_names_the_ends_that_would_decide_otherwise() -> None:
    plan = qdq.plan(product(), rules=NARROW, profiles=[parse_profile("x=1x32/8x32/8x32")])
    assert plan.notes == (
        "At the min shapes, 2 edges would be decided differently, such as x -> product[0]. The plan uses the opt shapes.",
    )
    assert (
        qdq.plan(product(), rules=NARROW, profiles=[parse_profile("x=2x32/8x32/9x32")]).notes == ()
    )


@pytest.mark.parametrize("rows", [1, 8])
def test_the_batch_that_calibrates_decides_nothing(rows: int) -> None:
    data = [{"x": np.ones((rows, 32), np.float32)}]
    assert len(qdq.quantize(product(), data, rules=NARROW).plan.placements) == 2


def test_check_plans_for_the_shapes_that_the_model_was_made_for(tmp_path: Path) -> None:
    model = save(product(), tmp_path / "m.onnx")
    options = ("--data", "noise", "--rules", "narrow-in-float", "--shapes", "x=2x32/8x32/64x32")
    assert run("quantize", model, "-o", tmp_path / "q.onnx", *options)[0] == 0
    assert run("check", tmp_path / "q.onnx")[0] == 0
    written = onnx.load(tmp_path / "q.onnx")
    assert {p.key: p.value for p in written.metadata_props}["qdq.shapes"] == "x=2x32/8x32/64x32"
    (entry,) = (p for p in written.metadata_props if p.key == "qdq.shapes")
    entry.value = "x=1x32"
    save(written, tmp_path / "other.onnx")
    code, text, _ = run("check", tmp_path / "other.onnx")
    assert (code, text.count("unwanted-pair")) == (1, 2)
    entry.value = "junk"
    save(written, tmp_path / "junk.onnx")
    assert "qdq.shapes" in refused(tmp_path, "check", tmp_path / "junk.onnx")


def test_a_plan_file_keeps_the_shapes(tmp_path: Path) -> None:
    model, plan = save(product(), tmp_path / "m.onnx"), tmp_path / "plan.yaml"
    assert run("plan", model, "-o", plan, "--shapes", "x=1x32/8x32/8x32")[0] == 0
    assert "profiles:\n- x=1x32/8x32/8x32\n" in plan.read_text()
    assert run("plan", model, "--diff", plan, "--shapes", "x=1x32/8x32/8x32")[0] == 0
    code, text, _ = run("plan", model, "--diff", plan)
    assert (code, "profiles: x=1x32/8x32/8x32 -> none" in text) == (
        0,
        True,
    )  # no edge is decided otherwise


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("y=1x32", "--shapes names no input 'y'"),
        ("x=1x31", "does not fit the input, whose shape is ?x32"),
        ("x=1", "does not fit the input"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "explain"])
def test_shapes_that_the_model_cannot_take_are_refused(
    tmp_path: Path, command: str, shape: str, message: str
) -> None:
    model = save(product(), tmp_path / "m.onnx")
    assert message in refused(
        tmp_path, command, model, *(["product"] if command == "explain" else []), "--shapes", shape
    )


def test_an_input_named_twice_is_refused(tmp_path: Path) -> None:
    model = save(product(), tmp_path / "m.onnx")
    assert "names the input 'x' twice" in refused(
        tmp_path, "plan", model, "--shapes", "x=1x32", "--shapes", "x=2x32"
    )
