"""Recovery by `quantize`: equalized channels and corrected biases stay where they help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qdq
from qdq.errors import UsageError
from tests.support.cli_runner import refused, run, save
from tests.support.graphs import build, noise

SAMPLES = [{"x": noise(1, 3, 8, 8, seed=i)} for i in range(6)]


def uneven_network() -> onnx.ModelProto:
    """Return two convolutions and a Relu between them, whose channels differ a thousandfold."""
    first, second = noise(8, 3, 3, 3), noise(4, 8, 3, 3, seed=1)
    factors = np.array([2.0**k for k in range(-5, 3)], np.float32)
    return build(
        [
            onnx.helper.make_node("Conv", ["x", "v", "c"], ["a"], name="first", pads=[1] * 4),
            onnx.helper.make_node("Relu", ["a"], ["r"]),
            onnx.helper.make_node("Conv", ["r", "w"], ["y"], name="second", pads=[1] * 4),
        ],
        {"x": [1, 3, 8, 8]},
        {"y": [1, 4, 8, 8]},
        {
            "v": first * factors[:, None, None, None],
            "c": noise(8, seed=2) * factors,
            "w": second / factors[None, :, None, None],
        },
    )


def weight_of(model: onnx.ModelProto, name: str) -> np.ndarray:
    """Return a stored weight."""
    (tensor,) = (item for item in model.graph.initializer if item.name == name)
    return numpy_helper.to_array(tensor)


def test_channels_are_equalized_by_default_where_that_gains() -> None:
    model = uneven_network()
    result = qdq.quantize(model, SAMPLES)
    (step,) = result.recovery
    assert step.method == "equalize"
    assert step.is_kept
    assert step.after_db - step.before_db > 3.0
    assert not np.array_equal(weight_of(result.model, "w"), weight_of(model, "w"))
    assert result.findings == ()


def test_an_equalized_model_strips_to_the_model_that_went_in(tmp_path: Path) -> None:
    path = save(uneven_network(), tmp_path / "m.onnx")
    plain, equalized = tmp_path / "plain.onnx", tmp_path / "equalized.onnx"
    np.savez(tmp_path / "d.npz", x=np.concatenate([sample["x"] for sample in SAMPLES]))
    data = ("--data", tmp_path / "d.npz")
    assert run("quantize", path, "-o", plain, *data, "--recover", "off", "--guard", "off")[0] == 0
    code, text, _ = run("quantize", path, "-o", equalized, *data)
    assert (code, "equalize: " in text, ": kept" in text) == (0, True, True)
    for file in (plain, equalized):
        assert run("strip", file, "-o", file.with_suffix(".float.onnx"))[0] == 0
        assert run("check", file)[0] == 0
    stripped = [file.with_suffix(".float.onnx").read_bytes() for file in (plain, equalized)]
    assert stripped[0] == stripped[1]


def test_nothing_is_changed_where_recovery_is_off() -> None:
    model = uneven_network()
    result = qdq.quantize(model, SAMPLES, recovery=qdq.Recovery(guard=False, methods="off"))
    assert (result.recovery, result.partial) == ((), None)
    assert np.array_equal(weight_of(result.model, "w"), weight_of(model, "w"))


def test_given_ranges_are_those_of_channels_as_they_are() -> None:
    result = qdq.quantize(uneven_network(), SAMPLES, given={"r": 3.0})
    assert result.recovery == ()


def test_biases_are_corrected_on_request_and_restored_by_stripping() -> None:
    model = uneven_network()
    recovery = qdq.Recovery(guard=False, methods="bias")
    result = qdq.quantize(model, SAMPLES, recovery=recovery, method="max")
    (step,) = result.recovery
    assert step.method == "bias"
    assert np.array_equal(weight_of(qdq.strip(result.model), "c"), weight_of(model, "c"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"methods": "equalise"}, "unknown recovery method 'equalise'"),
        ({"methods": 3}, "Recovery.methods"),
        ({"guard": 3.0}, "3 is no share"),
        ({"guard": "3%"}, "Recovery.guard"),
        ({"budget": 25}, "Recovery.budget"),
    ],
)
def test_options_that_do_not_fit_are_named(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        qdq.Recovery(**arguments)  # type: ignore[arg-type]


def test_an_unknown_method_is_answered_in_one_line(tmp_path: Path) -> None:
    path = save(uneven_network(), tmp_path / "m.onnx")
    argv = ("quantize", path, "-o", tmp_path / "o.onnx", "--data", "noise", "--recover", "magic")
    assert "unknown recovery method 'magic'" in refused(tmp_path, *argv)


def test_ranges_are_refined_without_guard_and_equalization() -> None:
    recovery = qdq.Recovery(guard=False, methods="refine")
    result = qdq.quantize(uneven_network(), SAMPLES, recovery=recovery, method="max")
    (step,) = result.recovery
    assert step.method == "refine"
