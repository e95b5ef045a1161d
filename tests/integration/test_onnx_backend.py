"""onnx's own backend tests: every command works on their models or ends in one clear line.

An eighth of them, drawn with a seed, for all take some two minutes on two cores; `python benchmarks/backend.py` runs them all.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import backend
import numpy as np
import onnx
import pytest
from backend import DEFECT, REFUSED, Case, Outcome

from qdq.graph.loader import load
from qdq.quantized.converter import convert_to_qdq
from tests.support.cli_runner import save, tiny_model
from tests.support.graphs import run

SHARE = "1/8"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Return what the default commands did with a share of the models."""
    todo = backend.share(backend.cases(tmp_path_factory.mktemp("backend")), SHARE, seed=0)
    return list(backend.outcomes(todo, backend.DEFAULT))


def test_no_model_of_the_backend_tests_shows_a_defect(found: list[Outcome]) -> None:
    assert [f"{o.command} {o.case.name}: {o.says}" for o in found if o.kind == DEFECT] == []


def test_every_command_ran_on_every_model_and_each_ends_in_every_way_it_has(
    found: list[Outcome],
) -> None:
    ends = {
        command: Counter(o.kind for o in found if o.command == command)
        for command in backend.DEFAULT
    }
    assert {sum(kinds.values()) for kinds in ends.values()} == {len(found) // len(backend.DEFAULT)}
    assert len(found) > 1000
    assert ends["check"]["worked"] > 250
    assert ends["check"]["findings"] > 30
    assert ends["plan"]["worked"] > 200
    assert ends["quantize"]["worked"] > 20


def test_every_refusal_names_its_file_and_says_what_to_do(found: list[Outcome]) -> None:
    refused = {o.says for o in found if o.kind == REFUSED}
    assert len(refused) > 50
    form = re.compile(r"qdq: \S*\.onnx: .+[.?] ['A-Z].+\.")
    assert [line for line in refused if not form.fullmatch(line)] == []


def test_quantized_operators_of_the_node_tests_give_the_same_integers_as_pairs() -> None:
    from onnx.backend.test.case.node import collect_testcases

    compared = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes expected outputs
        cases = [
            case
            for case in collect_testcases(None)
            if case.name.startswith(("test_qlinearconv", "test_qlinearmatmul"))
        ]
    for case in cases:
        model = backend._with_operands(case.model, case.data_sets)
        assert model is not None
        source, converted = convert_to_qdq(load(model))
        feed = {model.graph.input[0].name: case.data_sets[0][0][0]}
        assert [c.op for c in converted] == [model.graph.node[0].op_type]
        np.testing.assert_array_equal(run(source.model, feed)[0], run(model, feed)[0], case.name)
        compared.append(case.name)
    assert len(compared) >= 9


# --- the harness -----------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[backend._Worker]:
    started = backend._Worker(["check"])
    yield started
    started.stop()


def outcome_of(worker: backend._Worker, limit: float) -> Outcome:
    """Return what comes of the case that a worker was given."""
    while True:
        if got := list(worker.results(worker.pipe.poll(0.1), limit)):
            return got[0]


def test_a_process_that_dies_is_a_defect_of_its_model_and_the_next_one_runs(
    tmp_path: Path, worker: backend._Worker
) -> None:
    case = Case("group", "tiny", save(tiny_model(), tmp_path / "tiny.onnx"))
    worker.process.kill()
    worker.process.join()
    worker.case, worker.since, worker.done = case, time.monotonic(), 0
    assert outcome_of(worker, 60.0) == Outcome(case, "check", DEFECT, "the process died with -9")
    assert worker.case is None
    worker.begin(case)
    assert outcome_of(worker, 60.0).kind == "findings"


def test_a_model_that_takes_too_long_is_a_defect(tmp_path: Path, worker: backend._Worker) -> None:
    case = Case("group", "tiny", save(tiny_model(), tmp_path / "tiny.onnx"))
    worker.begin(case)
    assert outcome_of(worker, 0.0) == Outcome(case, "check", DEFECT, "still running after 0 s")


def test_an_output_that_the_checker_refuses_is_a_defect_only_where_it_takes_the_input(
    tmp_path: Path,
) -> None:
    good, bad = save(tiny_model(), tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    broken = tiny_model()
    broken.graph.node[0].input[1] = "absent"
    save(broken, bad)
    assert backend._find_fault(bad, good).startswith("onnx.checker refuses the output: ")
    assert backend._find_fault(bad, bad) == ""
    assert backend._find_fault(good, good) == ""


def test_an_exception_more_than_one_line_and_a_warning_are_defects(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import click

    from qdq import cli

    def ends(
        code: int, *lines: str, raises: Exception | None = None, warns: bool = False
    ) -> tuple[str, str]:
        def main(_: list[str]) -> int:
            for line in lines:
                click.echo(line, err=True)
            if warns:
                warnings.warn("overflow", RuntimeWarning, stacklevel=1)
            if raises:
                raise raises
            return code

        monkeypatch.setattr(cli, "main", main)
        return backend._called(["check", "m.onnx"])

    assert ends(0) == ("worked", "")
    assert ends(2, "qdq: m.onnx: no; do") == (REFUSED, "qdq: m.onnx: no; do")
    assert ends(2, "qdq: m.onnx: no", "and more")[0] == DEFECT
    assert ends(2, "no")[0] == DEFECT
    assert ends(0, warns=True)[0] == DEFECT
    assert ends(0, raises=IndexError("out of range")) == (
        DEFECT,
        "IndexError: out of range (in test_onnx_backend.py, main)",
    )


def test_operands_are_stored_as_weights(tmp_path: Path) -> None:
    cases = {c.name: c for c in backend.cases(tmp_path) if c.group == backend.STORED}
    conv = onnx.load(cases["test_basic_conv_with_padding"].path)
    assert [i.name for i in conv.graph.input] == ["x"]
    assert [(t.name, list(t.dims)) for t in conv.graph.initializer] == [("W", [1, 1, 3, 3])]
