"""Commands of qdq over every model of onnx's own backend tests: what works, what is refused in one
line, and what is a defect.

Run it with the interpreter that has qdq's dependencies:

    python benchmarks/backend.py [--models FOLDER]... [--commands check,plan,quantize]
                                 [--share 1/8 --seed 0] [--lines]

The node tests hold one operator each and take its weights as inputs; each is run a second time
with every input but the first stored in the file, as weights are. `--models` adds the .onnx files
of a folder. Two processes run the commands in themselves; one that exceeds the time limit or dies
is a defect of its model, and is started again. A defect is: an exception, another end than exit
code 0 or 1 or one line with exit code 2, a warning, an output that onnx.checker or ONNX Runtime
refuses where it takes the input, a command that hangs or dies. Exit code 1 if there is any.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from harness import markdown_head, markdown_row
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

#: What each command is run with, besides the model; OUT is where it writes.
COMMANDS: dict[str, tuple[str, ...]] = {
    "check": ("check", "MODEL"),
    "json": ("check", "MODEL", "--format", "json"),
    "plan": ("plan", "MODEL"),
    "quantize": ("quantize", "MODEL", "-o", "OUT", "--data", "noise", "--force"),
    "strip": ("strip", "MODEL", "-o", "OUT", "--force"),
    "ranges": ("strip", "MODEL", "-o", "OUT", "--ranges", "RANGES", "--force"),
    "diff": ("diff", "MODEL", "MODEL"),
}
DEFAULT = ("check", "plan", "quantize")
#: Seconds that one model may take with all commands.
LIMIT = 120.0
PROCESSES = 2
STORED = "node, operands stored"

#: What qdq says of a model that ONNX Runtime refuses.
_UNRUN = ("ONNX Runtime cannot run it", "ONNX Runtime lacks the operator")
WORKED, FINDINGS, REFUSED, DEFECT = "worked", "findings", "refused", "defect"


class Case(NamedTuple):
    """A model, and the group it is counted in."""

    group: str
    name: str
    path: Path


class Outcome(NamedTuple):
    """What one command did with one model: how it ended, and the line, or the defect in words."""

    case: Case
    command: str
    kind: str
    says: str


# Models.


def cases(folder: Path, extra: Iterable[Path] = ()) -> list[Case]:
    """Return the models of onnx's backend tests, those that are made by code written to a folder,
    and the files of other folders.
    """
    models = list(_generated(folder))
    data = Path(onnx.__file__).parent / "backend" / "test" / "data"
    models += [
        Case(path.relative_to(data).parts[0], f"{path.parent.name}/{path.name}", path)
        for path in sorted(data.rglob("*.onnx"))
    ]
    for further in extra:
        models += [Case(further.name, path.name, path) for path in sorted(further.rglob("*.onnx"))]
    return models


def _generated(folder: Path) -> Iterator[Case]:
    from onnx.backend.test.case.model import collect_testcases as models
    from onnx.backend.test.case.node import collect_testcases as nodes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes expected outputs
        generated = [("node", case) for case in nodes(None)] + [
            ("model", case) for case in models()
        ]
    for group, case in generated:
        if case.model is None:
            continue  # those of real networks, which onnx downloads
        yield _written(folder, group, case.name, case.model)
        if group == "node" and (stored := _with_operands(case.model, case.data_sets)) is not None:
            yield _written(folder, STORED, case.name, stored)


def _written(folder: Path, group: str, name: str, model: onnx.ModelProto) -> Case:
    path = folder / group.replace(", ", "-").replace(" ", "-") / f"{name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return Case(group, name, path)


def _with_operands(
    model: onnx.ModelProto, data_sets: Sequence[tuple[Sequence[Any], Sequence[Any]]] | None
) -> onnx.ModelProto | None:
    """Return the model with every input but the first stored as an initializer; None where there
    is none, or one is no tensor.
    """
    operands = [data_sets[0][0][i] for i in range(1, len(model.graph.input))] if data_sets else []
    if not operands or not all(
        isinstance(value, np.ndarray | np.generic | onnx.TensorProto) for value in operands
    ):
        return None
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    for value, item in zip(operands, model.graph.input[1:], strict=True):
        tensor = (
            value
            if isinstance(value, onnx.TensorProto)
            else numpy_helper.from_array(np.asarray(value))
        )
        stored.graph.initializer.append(tensor)
        stored.graph.initializer[-1].name = item.name
    del stored.graph.input[1:]
    stored.ir_version = max(
        stored.ir_version, 4
    )  # before, every initializer had to be listed as an input
    return stored


# Running.


def outcomes(
    todo: Sequence[Case], commands: Sequence[str], limit: float = LIMIT, processes: int = PROCESSES
) -> Iterator[Outcome]:
    """Yield what each command did with each model, in processes that are started again when they
    hang or die.
    """
    waiting = list(reversed(todo))
    workers = [_Worker(commands) for _ in range(min(processes, len(waiting)))]
    try:
        while waiting or any(worker.case for worker in workers):
            for worker in workers:
                if worker.case is None and waiting:
                    worker.begin(waiting.pop())
            ready = wait([worker.pipe for worker in workers if worker.case], timeout=1.0)
            for worker in workers:
                yield from worker.results(worker.pipe in ready, limit)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that runs commands on one model after the other."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.commands = tuple(commands)
        self.case: Case | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve, args=(child_pipe, self.commands), daemon=True
        )
        self.process.start()
        child_pipe.close()

    def begin(self, case: Case) -> None:
        self.case, self.since, self.done = case, time.monotonic(), 0
        self.pipe.send(case)

    def results(self, ready: bool, limit: float) -> Iterator[Outcome]:
        """Yield what came back; at the end of all commands, or of the process, the worker is free
        again.
        """
        if self.case is None:
            return
        try:
            if ready:
                yield self.pipe.recv()
                self.done += 1
            elif time.monotonic() - self.since > limit:
                yield from self._gave_up(f"still running after {limit:g} s")
        except EOFError:
            self.process.join()
            yield from self._gave_up(f"the process died with {self.process.exitcode}")
        if self.done == len(self.commands):
            self.case = None

    def _gave_up(self, says: str) -> Iterator[Outcome]:
        assert self.case is not None
        yield Outcome(self.case, self.commands[self.done], DEFECT, says)
        self.stop()
        self._start()
        self.done = len(self.commands)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, commands: Sequence[str]) -> None:
    """Run the commands on every model that comes, and send each outcome."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries in C++ write
    with tempfile.TemporaryDirectory() as folder:
        while True:
            case = pipe.recv()
            for command in commands:
                pipe.send(run(case, command, Path(folder)))


def run(case: Case, command: str, folder: Path) -> Outcome:
    """Return what a command did with a model; what it writes goes into a folder."""
    out = folder / "out.onnx"
    out.unlink(missing_ok=True)
    places = {"MODEL": str(case.path), "OUT": str(out), "RANGES": str(folder / "out.yaml")}
    argv = [places.get(part, part) for part in COMMANDS[command]]
    kind, says = _called(argv)
    if (
        kind in (WORKED, FINDINGS)
        and "OUT" in COMMANDS[command]
        and (wrong := _find_fault(out, case.path))
    ):
        kind, says = DEFECT, wrong
    if any(fact in says for fact in _UNRUN) and not _loaded(case.path):
        kind, says = DEFECT, f"ONNX Runtime does load it: {says}"
    return Outcome(case, command, kind, says)


def _called(argv: Sequence[str]) -> tuple[str, str]:
    from qdq.cli import main

    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(record=True) as warned,
        ):
            warnings.simplefilter("always")
            code = main(argv)
    except Exception as error:  # noqa: BLE001 that none comes is what is tested
        where = traceback.extract_tb(error.__traceback__)[-1]
        return (
            DEFECT,
            f"{type(error).__name__}: {error} (in {Path(where.filename).name}, {where.name})",
        )
    message = err.getvalue() + "".join(
        f"{w.category.__name__}: {w.message}\n"
        for w in warned
        if not issubclass(w.category, DeprecationWarning)
    )
    if code == 2:
        clear = (
            message.startswith("qdq: ")
            and message.count("\n") == 1
            and ("json" in argv or not out.getvalue())
        )
        return (REFUSED if clear else DEFECT), message.strip()
    if code not in (0, 1) or message:
        return DEFECT, f"exit code {code}, and on standard error: {message.strip()}"
    return (FINDINGS if code else WORKED), out.getvalue() if code else ""


def _find_fault(out: Path, model: Path) -> str:
    """Return what onnx.checker or ONNX Runtime say against an output, "" where nothing, or the
    same of the input.
    """
    for judge in (_checked, _loaded):
        if (wrong := judge(out)) and not judge(model):
            return wrong
    return ""


def _checked(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # noqa: BLE001 onnx documents none of what it throws
        return f"onnx.checker refuses the output: {_first(error)}"
    return ""


def _loaded(path: Path) -> str:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 ONNX Runtime documents none of what it throws
        return f"ONNX Runtime refuses the output: {_first(error)}"
    return ""


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# Counting.


def sort_of(outcome: Outcome) -> str:
    """Return the line of a refusal without what differs from model to model: file, names and
    numbers.
    """
    message = (
        outcome.says.replace(str(outcome.case.path), "MODEL")
        .replace(outcome.case.path.name, "MODEL")
        .removeprefix("qdq: ")
    )
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", message)
    return re.sub(r"\d+", "N", message)


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    return "\n".join((markdown_head(headers), *map(markdown_row, rows)))


def counts(results: Sequence[Outcome]) -> str:
    """Return how each command ended, by group of models."""
    kinds = (WORKED, FINDINGS, REFUSED, DEFECT)
    by = Counter((o.case.group, o.command, o.kind) for o in results)
    rows = []
    for group, command in dict.fromkeys((o.case.group, o.command) for o in results):
        numbers = [by[group, command, kind] for kind in kinds]
        rows.append((group, command, sum(numbers), *numbers))
    return table(
        (
            "models",
            "command",
            "of them",
            "worked",
            "with findings",
            "refused in one line",
            "defects",
        ),
        rows,
    )


def refusals(results: Sequence[Outcome]) -> str:
    """Return every sort of refusal: how many models, by which commands, one of them, and the
    line.
    """
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in results:
        if outcome.kind == REFUSED:
            groups[sort_of(outcome)].append(outcome)
    rows = []
    for line, refused in sorted(groups.items(), key=lambda item: -len(item[1])):
        commands = [command for command in COMMANDS if any(o.command == command for o in refused)]
        rows.append(
            (
                len({o.case for o in refused}),
                ", ".join(commands),
                refused[0].case.name,
                line.replace("|", "\\|"),
            )
        )
    return table(("models", "commands", "for example", "line"), rows)


def share(results: list[Case], part: str, seed: int) -> list[Case]:
    """Return one part of N of the models, such as ``1/8``, drawn with a seed."""
    number, of = map(int, part.split("/"))
    random.Random(seed).shuffle(results)
    return results[number - 1 :: of]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run qdq over onnx's own backend tests.")
    parser.add_argument(
        "--models",
        type=Path,
        action="append",
        default=[],
        help="further folder of .onnx files, such as ../shared/models; may be repeated",
    )
    parser.add_argument(
        "--commands",
        default=",".join(DEFAULT),
        help=f"of {', '.join(COMMANDS)} (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        default="1/1",
        help="one part of the models, drawn by --seed (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit", type=float, default=LIMIT, help="seconds for one model (default: %(default)s)"
    )
    parser.add_argument(
        "--lines", action="store_true", help="print every refusal as it was printed"
    )
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="qdq-backend-"))
    try:
        todo = share(cases(folder, arguments.models), arguments.share, arguments.seed)
        results = list(outcomes(todo, arguments.commands.split(","), arguments.limit))
    finally:
        shutil.rmtree(folder)
    _print(results, arguments.lines)
    return 1 if any(o.kind == DEFECT for o in results) else 0


def _print(results: Sequence[Outcome], lines: bool) -> None:
    print(counts(results), refusals(results), sep="\n\n")
    for outcome in results:
        if outcome.kind == DEFECT or (lines and outcome.kind == REFUSED):
            print(
                f"{outcome.kind}: {outcome.command} {outcome.case.group}: "
                f"{outcome.case.name}: {outcome.says}"
            )


if __name__ == "__main__":
    sys.exit(main())
