"""A share of the campaigns of benchmarks/fuzzing.py, by fixed seeds."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.file_kinds import KINDS, FileKind
from fuzz.file_trial import FileTrials
from fuzz.graph_trial import GraphTrials
from fuzz.outcomes import FAILED, REFUSED, WORKED, Outcome, Summary, read_summary
from fuzz.workers import run_campaign

from qdq.errors import QdqError

MUTANTS, GRAPHS = 500, 24


@pytest.fixture(scope="module")
def trials() -> Iterator[FileTrials]:
    trials = FileTrials()
    yield trials
    trials.close()


def failures(outcomes: list[Outcome]) -> list[tuple[object, ...]]:
    return [(o.seed, o.group, o.command, o.fault, o.details) for o in outcomes if o.kind == FAILED]


@pytest.mark.parametrize("start", range(0, MUTANTS, 100))
def test_no_damaged_file_ends_otherwise_than_in_a_line(trials: FileTrials, start: int) -> None:
    outcomes = [outcome for seed in range(start, start + 100) for outcome in trials.run(seed)]
    assert failures(outcomes) == []
    assert {REFUSED, WORKED} <= {outcome.kind for outcome in outcomes}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"rule"}))
def test_the_whole_files_that_mutations_start_from_are_read(trials: FileTrials, kind: str) -> None:
    for example in KINDS[kind].examples(trials.folder):
        (outcome,) = trials.try_content(0, KINDS[kind], example, ())
        assert outcome.kind == WORKED, outcome


def test_every_command_of_a_kind_works_with_some_example(trials: FileTrials) -> None:
    for kind in set(KINDS.values()) - {KINDS["checkpoint"]}:
        commands = (*kind.light, *kind.commands)
        worked: Counter[int] = Counter()
        for example in kind.examples(trials.folder)[:6]:
            outcomes = trials.try_content(0, kind, example, commands)[1:]
            worked.update(i for i, o in enumerate(outcomes) if o.kind not in (REFUSED, FAILED))
        never = [command for i, command in enumerate(commands) if not worked[i]]
        assert [c for c in never if "all.ranges" not in c and "--ranges" not in c] == [], kind.name


def test_a_seed_stands_for_the_same_file_every_time(trials: FileTrials) -> None:
    for seed in range(60):
        assert trials.damage(seed)[:2] == trials.damage(seed)[:2]


def read_badly(path: Path) -> object:
    content = path.read_bytes()
    if content == b"raises":
        raise KeyError("x")
    if content == b"writes":
        path.with_name("left.tmp").write_bytes(b"")
    if content == b"changes":
        path.with_name("plan.yaml").write_bytes(b"")
    if content == b"temporary":
        Path(tempfile.gettempdir(), "left").write_bytes(b"")
    if content == b"refuses":
        raise QdqError("the file is damaged")
    return content


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"raises", "KeyError in test_fuzzing.py, read_badly"),
        (b"writes", "files left behind (worked)"),
        (b"temporary", "temporary files left behind (worked)"),
        (b"refuses", ""),
        (b"whole", ""),
    ],
)
def test_what_a_reader_does_wrong_is_seen(trials: FileTrials, content: bytes, fault: str) -> None:
    kind = FileKind("bad", 1.0, "damaged.bad", lambda _: [], (), read_badly, (), ())
    (outcome,) = trials.try_content(0, kind, content, ())
    assert outcome.fault == fault
    assert (outcome.kind == FAILED) == bool(fault)


class Dying:
    """Trials that die, hang and work, by the seed."""

    def run(self, seed: int) -> list[Outcome]:
        if seed == 1:
            os.abort()
        while seed == 3:
            pass
        return [Outcome(seed, "group", "read", WORKED)]

    def close(self) -> None:
        """Nothing is left open."""


def test_a_campaign_goes_on_after_a_process_that_died_or_hangs(tmp_path: Path) -> None:
    summary = Summary("files")
    for outcomes in run_campaign(Dying, (), range(6), jobs=1, limit=1.0):
        summary.add(outcomes)
    assert summary.items == {"group": 4, "unknown": 2}
    faults = {key[2]: [o.seed for o in kept] for key, kept in summary.faults.items()}
    assert faults == {"the process died with -6": [1], "hangs: still running after 1 s": [3]}
    (tmp_path / "s.json").write_text(summary.to_json())
    again = read_summary(tmp_path / "s.json")
    again.merge(read_summary(tmp_path / "s.json"))
    assert again.items == {"group": 8, "unknown": 4}


@pytest.mark.parametrize("start", range(0, GRAPHS, 6))
def test_generated_graphs_hold_the_invariants(start: int) -> None:
    trials = GraphTrials()
    outcomes = [outcome for seed in range(start, start + 6) for outcome in trials.run(seed)]
    assert failures(outcomes) == []
    assert len([o for o in outcomes if o.kind == WORKED]) > 5 * 6


def test_generated_graphs_have_all_that_they_are_made_to_have() -> None:
    from fuzz.graph_generator import generate_model

    models = [generate_model(seed) for seed in range(80)]
    operators = {node.op_type for model in models for node in model.graph.node}
    assert operators >= {"Conv", "Add", "Sum", "If", "Loop", "Scan", "Dense", "Cast", "Dropout"}
    types = {m.graph.input[0].type.tensor_type.elem_type for m in models}
    assert len(types) == 2
    assert models[7].SerializeToString() == generate_model(7).SerializeToString()
