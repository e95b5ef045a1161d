"""Models that would never come back from a run, and runs that take too long."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qdq
from qdq.errors import ModelError, UsageError
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.runtime import runnable
from qdq.runtime.runnable import require_runnable
from qdq.runtime.session import open_session
from qdq.runtime.timed_session import TIME_LIMIT_VARIABLE, TimedSession, read_time_limit
from tests.support.cli_runner import refused, save
from tests.support.graphs import build, node, noise, value

MANY = (1 << 63) - 1


def looping(
    condition: onnx.NodeProto, trips: int | None = MANY, start: bool = True
) -> onnx.ModelProto:
    """Return x [2,4] through a Loop of Relu, whose body computes its condition by a node."""
    body = helper.make_graph(
        [node("Relu", ["s"], "s2"), condition],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", [2, 4])],
        [value("c2", [], TensorProto.BOOL), value("s2", [2, 4])],
        [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    weights = {"w": noise(4, 4), "start": np.array(start)}
    if trips is not None:
        weights["trips"] = np.array(trips)
    return build(
        [
            node(
                "Loop",
                ["" if trips is None else "trips", "start", "x"],
                "l",
                name="loop",
                body=body,
            ),
            node("MatMul", ["l", "w"], "y"),
        ],
        {"x": [2, 4]},
        {"y": [2, 4]},
        weights,
    )


SAME = node("Identity", ["c"], "c2")
TRUE = node("Constant", [], "c2", value=numpy_helper.from_array(np.array(True)))
FALSE = node("Constant", [], "c2", value=numpy_helper.from_array(np.array(False)))
COMPUTED = node("Equal", ["i", "i"], "c2")


@pytest.mark.parametrize(("condition", "trips"), [(SAME, MANY), (TRUE, MANY), (SAME, None)])
def test_a_loop_without_an_end_is_refused(
    tmp_path: Path, condition: onnx.NodeProto, trips: int | None
) -> None:
    path = save(looping(condition, trips), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    message = refused(tmp_path, "quantize", path, "-o", out, "--data", "noise")
    assert "Loop loop has no end" in message


@pytest.mark.parametrize(
    "model",
    [
        looping(SAME, 3),
        looping(FALSE, MANY),
        looping(FALSE, None),
        looping(SAME, None, start=False),
    ],
)
def test_a_loop_with_an_end_is_run(model: onnx.ModelProto) -> None:
    assert qdq.quantize(model, "noise").scales.by_pair


def test_a_run_that_takes_too_long_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIME_LIMIT_VARIABLE, "0.2")
    path = save(looping(COMPUTED), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    message = refused(tmp_path, "quantize", path, "-o", out, "--data", "noise")
    assert "model.onnx: a run takes more than 0.2 seconds; a Loop in it may have no end" in message


@pytest.mark.parametrize("text", ["0", "-1", "x", "nan", "inf", "1e30"])
def test_a_time_limit_is_a_number_above_0(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(TIME_LIMIT_VARIABLE, text)
    with pytest.raises(UsageError, match="QDQ_TIME_LIMIT="):
        read_time_limit()


def test_a_stopped_session_ends_the_runs_of_other_threads() -> None:
    index = GraphIndex(load(looping(COMPUTED)))
    session = open_session(index, [])
    assert isinstance(session, TimedSession)
    failures: list[Exception] = []

    def run_forever() -> None:
        try:
            session.run(None, {"x": noise(2, 4)})
        except Exception as error:  # noqa: BLE001 ONNX Runtime documents none
            failures.append(error)

    thread = threading.Thread(target=run_forever)
    thread.start()
    session.stop_runs()
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert len(failures) == 1


def doubled(times: int) -> onnx.ModelProto:
    """Return x [1,3,8,8] joined with itself so many times, then cut to its first part."""
    nodes = [node("Concat", ["x", "x"], "p0", axis=0)]
    nodes += [node("Concat", [f"p{i}"] * 2, f"p{i + 1}", axis=0) for i in range(times)]
    nodes += [
        node("Slice", [f"p{times}", "begin", "end"], "q"),
        node("Conv", ["q", "w"], "y"),
    ]
    weights = {"w": noise(4, 3, 1, 1), "begin": np.array([0]), "end": np.array([1])}
    return build(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, weights)


def test_a_tensor_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = save(doubled(60), tmp_path / "model.onnx")
    out = tmp_path / "out.onnx"
    message = refused(tmp_path, "quantize", path, "-o", out, "--data", "noise")
    assert "GB, more than the memory of this machine" in message


def test_the_size_counts_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    index = GraphIndex(load(doubled(0)))
    monkeypatch.setattr(runnable, "exceeds_memory", lambda size: size > 2 * 3 * 8 * 8 * 4)
    require_runnable(index)
    monkeypatch.setattr(runnable, "exceeds_memory", lambda size: size >= 2 * 3 * 8 * 8 * 4)
    with pytest.raises(ModelError, match="tensor 'p0' takes"):
        require_runnable(index)
