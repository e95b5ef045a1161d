"""Time and memory of calibration: qdq by each method, ONNX Runtime's calibrators, ModelOpt; all beside bare inference over the same samples.

    python benchmarks/calibration.py [MODEL.onnx[:48x320] ...] [--samples 16] [--many 512] [--repeats 3] [--modelopt-python PYTHON]

ResNet-50 and MobileNet-V2 with random weights are made, and models by path added; behind a colon stand the lengths of their dynamic
dimensions but the first, the last for all further ones (128 without). Samples are seeded noise. Every measurement is a process of its own,
in turns. Calibration is timed from the loaded model to the scales, with its session's start; bare inference without it. The second table is
of whole commands, which read samples and write the quantized model. Peak memory is the process's. A process that takes more than
--limit MiB or --timeout seconds is ended; ONNX Runtime's calibrators are then tried with half as many samples. It prints Markdown, judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent
_BARE, _STARTED = "bare ONNX Runtime", "with its session's start"
_METHODS = ("auto", "max", "percentile", "mse", "entropy")
_CALIBRATORS = ("MinMax", "Entropy")
_MODELOPT_METHODS = ("max", "entropy")
_ROWS = (
    _BARE,
    *(f"qdq, {method}" for method in _METHODS),
    *(f"onnxruntime calibrator, {name}" for name in _CALIBRATORS),
)
_MADE = ("resnet50", "mobilenet_v2")
_LENGTH = 128
_KIB_PER_MIB = 1024
_POLL = 0.05


class Model(NamedTuple):
    """A model, and the lengths of its dynamic dimensions but the first."""

    path: Path
    lengths: tuple[int, ...] = (_LENGTH,)

    def __str__(self) -> str:
        return f"{self.path}:{'x'.join(map(str, self.lengths))}"

    @classmethod
    def parse(cls, text: str) -> Model:
        path, _, lengths = text.rpartition(":")
        if path and re.fullmatch(r"\d+(x\d+)*", lengths):
            return cls(Path(path), tuple(map(int, lengths.split("x"))))
        return cls(Path(text))


class Run(NamedTuple):
    """What one process took."""

    seconds: float
    mebibytes: float
    #: Seconds before they counted: the start of a session.
    before: float = 0.0


class Ended(NamedTuple):
    """Why there is nothing to tell of a process."""

    why: str
    #: Whether it took too much, so that it may end well with less to do.
    exceeded: bool = False


class Bounds(NamedTuple):
    """What a process may take."""

    mebibytes: int
    seconds: int


class Noise:
    """Seeded samples of a model, made one at a time."""

    def __init__(self, model: Model, count: int) -> None:
        from qdq.data.input_specs import input_specs
        from qdq.graph.index import GraphIndex
        from qdq.graph.loader import load

        self.model, self.count = model, count
        self.specs = input_specs(GraphIndex(load(model.path)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        random = np.random.default_rng(0)
        for _ in range(self.count):
            yield {spec.name: self._values(random, spec) for spec in self.specs}

    def _values(self, random: Any, spec: Any) -> Any:
        import numpy as np

        lengths = chain(self.model.lengths, repeat(self.model.lengths[-1]))
        shape = [d or (next(lengths) if i else 1) for i, d in enumerate(spec.shape)]
        floats = np.dtype(spec.dtype).kind == "f"
        return (random.standard_normal(shape) if floats else random.integers(0, 2, shape)).astype(
            spec.dtype
        )


class Reader:
    """Samples as ONNX Runtime's calibrators read them."""

    def __init__(self, samples: Noise) -> None:
        self._left = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def main() -> None:
    given = _parser().parse_args()
    if given.row:
        print(json.dumps(_measured(given.models[0], given.row, given.samples)))
        return
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        made = [] if given.no_made else [Model(_make(Path(name), network)) for network in _MADE]
        for model in (*made, *given.models):
            _compare(model, given, Path(name))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure calibration against bare inference, ONNX Runtime's calibrators and ModelOpt."
    )
    parser.add_argument(
        "models",
        nargs="*",
        type=Model.parse,
        metavar="MODEL.onnx[:48x320]",
        help="models to measure besides those that are made",
    )
    parser.add_argument(
        "--samples", type=int, default=16, help="samples of the timed runs (default: %(default)s)"
    )
    parser.add_argument(
        "--many",
        type=int,
        default=512,
        help="samples of one more run of each (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="runs of each with --samples, in turns (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=int, default=8192, help="MiB that a process may take (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=int,
        default=900,
        help="seconds that a process may take (default: %(default)s)",
    )
    parser.add_argument("--no-made", action="store_true", help="measure only the models named")
    parser.add_argument(
        "--modelopt-python",
        metavar="PYTHON",
        help="a Python that has nvidia-modelopt[onnx] (default: ModelOpt is left out)",
    )
    parser.add_argument("--row", choices=_ROWS, help=argparse.SUPPRESS)
    return parser


def _make(folder: Path, network: str) -> Path:
    """Write a network in a process of its own, which gives its memory back."""
    path = folder / f"{network}.onnx"
    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; from networks import {network}; {network}(sys.argv[1])",
            str(path),
        ],
        cwd=_HERE,
        check=True,
    )
    return path


def _compare(model: Model, given: argparse.Namespace, folder: Path) -> None:
    bounds = Bounds(given.limit, given.timeout)
    print(
        f"### {model.path.stem}\n\n{given.repeats} runs of each in turns, {len(os.sched_getaffinity(0))} cores\n"
    )
    _calibrations(model, given, bounds)
    _commands(model, given, bounds, folder)


def _calibrations(model: Model, given: argparse.Namespace, bounds: Bounds) -> None:
    """Print the table of calibration alone."""

    def run(row: str, samples: int) -> Run | Ended:
        return _reported(
            [
                sys.executable,
                str(Path(__file__).resolve()),
                str(model),
                "--row",
                row,
                "--samples",
                str(samples),
            ],
            bounds,
        )

    turns = [{row: run(row, given.samples) for row in _ROWS} for _ in range(given.repeats)]
    few = {row: _typical([turn[row] for turn in turns]) for row in _ROWS}
    many = {
        row: _as_many(
            lambda samples, row=row: run(row, samples),
            given.many,
            given.samples if row.startswith("onnx") else given.many,
        )
        for row in _ROWS
    }
    columns = [
        f"{what}, {n} samples"
        for n in (given.samples, given.many)
        for what in ("s", "of bare", "peak MiB")
    ]
    _head("", *columns)
    bare = [few[_BARE], many[_BARE][0]]
    for row in _ROWS:
        _line(
            row,
            *_cells(few[row], bare[0]),
            *_cells(many[row][0], bare[1], many[row][1] if many[row][1] != given.many else None),
        )
        if row == _BARE:
            _line(_STARTED, *chain(*(_cells(_started(run), run) for run in bare)))
    print(flush=True)


def _as_many(run: Callable[[int], Run | Ended], most: int, least: int) -> tuple[Run | Ended, int]:
    """Return the run with the most samples that stays within bounds, halving them down to `least`, and their number."""
    samples = most
    done = run(samples)
    while isinstance(done, Ended) and done.exceeded and samples // 2 >= least:
        samples //= 2
        done = run(samples)
    return done, samples


def _commands(model: Model, given: argparse.Namespace, bounds: Bounds, folder: Path) -> None:
    """Print the table of whole commands."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        subprocess.run(
            [sys.executable, "-c", _WRITE, str(model), str(work), str(given.samples)],
            cwd=_HERE,
            env=_environment(),
            check=True,
        )
        commands = _whole(model.path, work, given.modelopt_python)
        turns = [
            {row: _process(command, bounds)[0] for row, command in commands.items()}
            for _ in range(given.repeats)
        ]
    _head(f"whole command, {given.samples} samples", "s", "of quantize_static's", "peak MiB")
    typical = {row: _typical([turn[row] for turn in turns]) for row in commands}
    for row, run in typical.items():
        _line(row, *_cells(run, typical[next(iter(commands))]))
    print(flush=True)


_WRITE = "import sys; from calibration import write_samples; write_samples(*sys.argv[1:])"


def write_samples(model: str, folder: str, count: str) -> None:
    """Write noise as one .npz for each sample."""
    import numpy as np

    (Path(folder) / "samples").mkdir()
    for i, sample in enumerate(Noise(Model.parse(model), int(count))):
        np.savez(Path(folder) / "samples" / f"{i:04}.npz", **sample)


def _whole(model: Path, work: Path, modelopt_python: str | None) -> dict[str, list[str]]:
    """Return each command that quantizes the model with the samples in a folder: the reference first."""
    source, out, data = str(model.resolve()), str(work / "out.onnx"), str(work / "samples")
    static = [sys.executable, str(_HERE / "static.py"), source, out, data]
    commands = {f"quantize_static, {name}": [*static, "--method", name] for name in _CALIBRATORS}
    for method in _METHODS:
        commands[f"qdq quantize, {method}"] = [
            sys.executable,
            "-m",
            "qdq",
            "quantize",
            source,
            "-o",
            out,
            "--data",
            data,
            "--method",
            method,
            "--force",
        ]
    for method in _MODELOPT_METHODS if modelopt_python else ():
        commands[f"modelopt.onnx.quantization, {method}"] = [
            str(modelopt_python),
            str(_HERE / "modelopt_ptq.py"),
            source,
            out,
            data,
            "--method",
            method,
        ]
    return commands


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_CHECKOUT)}


def _reported(command: Sequence[str], bounds: Bounds) -> Run | Ended:
    """Return what a process took of which the last line says the seconds that count, and those before them."""
    done, said = _process(command, bounds)
    if isinstance(done, Ended):
        return done
    seconds, before = json.loads(said.splitlines()[-1])
    return Run(seconds, done.mebibytes, before)


def _process(command: Sequence[str], bounds: Bounds) -> tuple[Run | Ended, str]:
    """Return what a whole process took, and what it said; it is ended where it exceeds the bounds."""
    with (
        tempfile.TemporaryFile("w+") as said,
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as folder,
    ):
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=errors, env=_environment(), cwd=folder
        )
        done, reasons = Event(), list[str]()
        watcher = Thread(target=_watch, args=(process.pid, bounds, done, reasons))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (said, errors):
            file.seek(0)
        if process.returncode:
            return Ended(reasons[0], True) if reasons else Ended(
                (errors.read().strip() or f"exit code {process.returncode}").splitlines()[-1]
            ), ""
        return Run(seconds, used.ru_maxrss / _KIB_PER_MIB), said.read()


def _watch(pid: int, bounds: Bounds, done: Event, reasons: list[str]) -> None:
    """Kill a process that exceeds the bounds, and say so; its memory is known on Linux only."""
    status, end = Path(f"/proc/{pid}/status"), time.monotonic() + bounds.seconds
    while not done.wait(_POLL):
        found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
        if found and int(found[1]) > bounds.mebibytes * _KIB_PER_MIB:
            reasons.append(f"over {bounds.mebibytes} MiB")
        elif time.monotonic() > end:
            reasons.append(f"over {bounds.seconds} s")
        if reasons:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def _typical(runs: Sequence[Run | Ended]) -> Run | Ended:
    """Return the median time and the largest peak, or why one of the runs ended."""
    done = [run for run in runs if isinstance(run, Run)]
    if len(done) < len(runs):
        return next(run for run in runs if isinstance(run, Ended))
    seconds, before = (
        statistics.median(times)
        for times in zip(*((run.seconds, run.before) for run in done), strict=True)
    )
    return Run(seconds, max(run.mebibytes for run in done), before)


def _started(run: Run | Ended) -> Run | Ended:
    return run if isinstance(run, Ended) else Run(run.seconds + run.before, run.mebibytes)


def _cells(
    run: Run | Ended, reference: Run | Ended, fewer: int | None = None
) -> tuple[str, str, str]:
    """Return seconds, their ratio to the reference's, and the peak, of `fewer` samples than the column says where that is given."""
    if isinstance(run, Ended):
        return run.why, "-", "-"
    if fewer:
        return f"{run.seconds:.2f} ({fewer} samples)", "-", f"{run.mebibytes:.0f} ({fewer} samples)"
    return (
        f"{run.seconds:.2f}",
        "-" if isinstance(reference, Ended) else f"{run.seconds / reference.seconds:.2f}",
        f"{run.mebibytes:.0f}",
    )


def _head(*cells: str) -> None:
    _line(*cells)
    _line(*("---" for _ in cells))


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _measured(model: Model, row: str, count: int) -> tuple[float, float]:
    """Return the seconds that count, and those of starting the session where they do not."""
    samples = Noise(model, count)
    if row == _BARE:
        return _infer(samples)
    tool, name = row.split(", ")
    return (_calibrate if tool == "qdq" else _collect)(samples, name), 0.0


def _infer(samples: Noise) -> tuple[float, float]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    begin = time.perf_counter()
    session = ort.InferenceSession(
        str(samples.model.path), options, providers=["CPUExecutionProvider"]
    )
    start = time.perf_counter()
    for sample in samples:
        session.run(None, sample)
    return time.perf_counter() - start, start - begin


def _calibrate(samples: Noise, method: str) -> float:
    """Return what `qdq.calibrate` takes."""
    import qdq

    source = qdq.load(samples.model.path)
    plan = qdq.plan(source)
    start = time.perf_counter()
    qdq.calibrate(source, plan, samples, method=method)
    return time.perf_counter() - start


def _collect(samples: Noise, calibrator: str) -> float:
    """Return what a calibrator of ONNX Runtime takes for the tensors that `quantize_static` observes."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    operators = sorted({*QDQRegistry, *QLinearOpsRegistry})
    start = time.perf_counter()
    made = create_calibrator(
        samples.model.path,
        operators,
        "augmented.onnx",
        CalibrationMethod[calibrator],
        extra_options={"symmetric": True},
    )
    made.collect_data(Reader(samples))
    made.compute_data()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
