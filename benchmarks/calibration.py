"""Time and memory of calibration: qdq by each method, ONNX Runtime's calibrators, ModelOpt; all
beside bare inference over the same samples.

    python benchmarks/calibration.py [MODEL.onnx[:48x320] ...] [--samples 16] [--many 512]
                                     [--repeats 3] [--modelopt-python PYTHON]

ResNet-50 and MobileNet-V2 with random weights are made, and models by path added; behind a colon
stand the lengths of their dynamic dimensions but the first, the last for all further ones (128
without). Samples are seeded noise. Every measurement is a process of its own, in turns.
Calibration is timed from the loaded model to the scales, with its session's start; bare inference
without it. The second table is of whole commands, which read samples and write the quantized
model. Peak memory is the process's. A process that takes more than --limit MiB or --timeout
seconds is ended; ONNX Runtime's calibrators are then tried with half as many samples. It prints
Markdown, judges nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from harness import (
    HERE,
    PLAIN,
    Ended,
    Limits,
    checkout_environment,
    count_cores,
    markdown_head,
    markdown_row,
    measure,
)

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
_WRITE = "import sys; from calibration import write_samples; write_samples(*sys.argv[1:])"


class Model(NamedTuple):
    """A model, and the lengths of its dynamic dimensions but the first."""

    path: Path
    lengths: tuple[int, ...] = (_LENGTH,)

    def __str__(self) -> str:
        return f"{self.path}:{'x'.join(map(str, self.lengths))}"

    @classmethod
    def parse(cls, text: str) -> Model:
        """Return the model that ``MODEL.onnx:48x320`` names."""
        path, _, lengths = text.rpartition(":")
        if path and re.fullmatch(r"\d+(x\d+)*", lengths):
            return cls(Path(path).resolve(), tuple(map(int, lengths.split("x"))))
        return cls(Path(text).resolve())


class Run(NamedTuple):
    """The cost of one process."""

    seconds: float
    mebibytes: float
    #: Seconds before they counted: the start of a session.
    before: float = 0.0


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
        self._remaining = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._remaining, None)


def main() -> None:
    """Measure one row in this process, or print the tables of every model."""
    arguments = _parser().parse_args()
    if arguments.row:
        cost = _measure_row(arguments.models[0], arguments.row, arguments.samples)
        print(json.dumps(cost))
        return
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        folder = Path(name)
        networks = () if arguments.no_made else _MADE
        models = [Model(_make(folder, network)) for network in networks]
        for model in (*models, *arguments.models):
            _compare(model, arguments, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Time calibration against inference, ONNX Runtime's calibrators and ModelOpt."
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
    """Write a network in a separate process, which gives its memory back."""
    path = folder / f"{network}.onnx"
    script = f"import sys; from networks import {network}; {network}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(path)], cwd=HERE, check=True)
    return path


def _compare(model: Model, arguments: argparse.Namespace, folder: Path) -> None:
    limits = Limits(arguments.limit, arguments.timeout)
    setting = f"{arguments.repeats} runs of each in turns, {count_cores()} cores"
    print(f"### {model.path.stem}\n\n{setting}\n")
    _print_calibrations(model, arguments, limits)
    _print_commands(model, arguments, limits, folder)


def _print_calibrations(model: Model, arguments: argparse.Namespace, limits: Limits) -> None:
    """Print the table of calibration alone."""

    def run(row: str, samples: int) -> Run | Ended:
        script = str(Path(__file__).resolve())
        options = ["--row", row, "--samples", str(samples)]
        return _reported([sys.executable, script, str(model), *options], limits)

    few_samples, many_samples = arguments.samples, arguments.many
    turns = [{row: run(row, few_samples) for row in _ROWS} for _ in range(arguments.repeats)]
    few = {row: _typical([turn[row] for turn in turns]) for row in _ROWS}
    many = {}
    for row in _ROWS:
        least = few_samples if row.startswith("onnx") else many_samples
        many[row] = _run_as_many(lambda n, row=row: run(row, n), many_samples, least)
    print(markdown_head(_calibration_headers(few_samples, many_samples)))
    bare = [few[_BARE], many[_BARE][0]]
    for row in _ROWS:
        run_of_many, samples = many[row]
        fewer = samples if samples != many_samples else None
        cells = (*_cells(few[row], bare[0]), *_cells(run_of_many, bare[1], fewer))
        print(markdown_row((row, *cells)), flush=True)
        if row == _BARE:
            started = chain.from_iterable(_cells(_with_start(run), run) for run in bare)
            print(markdown_row((_STARTED, *started)), flush=True)
    print(flush=True)


def _calibration_headers(few_samples: int, many_samples: int) -> list[str]:
    headers = [""]
    for samples in (few_samples, many_samples):
        headers += [f"{title}, {samples} samples" for title in ("s", "of bare", "peak MiB")]
    return headers


def _run_as_many(
    run: Callable[[int], Run | Ended], most: int, least: int
) -> tuple[Run | Ended, int]:
    """Return the run with the most samples within its limits, halved down to `least`."""
    samples = most
    done = run(samples)
    while isinstance(done, Ended) and done.exceeded and samples // 2 >= least:
        samples //= 2
        done = run(samples)
    return done, samples


def _print_commands(
    model: Model, arguments: argparse.Namespace, limits: Limits, folder: Path
) -> None:
    """Print the table of whole commands."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        write = [sys.executable, "-c", _WRITE, str(model), str(work), str(arguments.samples)]
        subprocess.run(write, cwd=HERE, env=checkout_environment(), check=True)
        commands = _whole_commands(model.path, work, arguments.modelopt_python)
        turns = [
            {row: _process(command, limits, work) for row, command in commands.items()}
            for _ in range(arguments.repeats)
        ]
    title = f"whole command, {arguments.samples} samples"
    print(markdown_head((title, "s", "of quantize_static's", "peak MiB")))
    typical = {row: _typical([turn[row] for turn in turns]) for row in commands}
    reference = typical[next(iter(commands))]
    for row, run in typical.items():
        print(markdown_row((row, *_cells(run, reference))), flush=True)
    print(flush=True)


def write_samples(model: str, folder: str, count: str) -> None:
    """Write noise as one .npz per sample."""
    import numpy as np

    samples = Path(folder) / "samples"
    samples.mkdir()
    for i, sample in enumerate(Noise(Model.parse(model), int(count))):
        np.savez(samples / f"{i:04}.npz", **sample)


def _whole_commands(model: Path, work: Path, modelopt_python: str | None) -> dict[str, list[str]]:
    """Return each command that quantizes the model with the samples in a folder: the reference
    first.
    """
    source, out, data = str(model.resolve()), str(work / "out.onnx"), str(work / "samples")
    static = [sys.executable, str(HERE / "static.py"), source, out, data]
    commands = {f"quantize_static, {name}": [*static, "--method", name] for name in _CALIBRATORS}
    quantize = [sys.executable, "-m", "qdq", "quantize", source, "-o", out, "--data", data, *PLAIN]
    for method in _METHODS:
        commands[f"qdq quantize, {method}"] = [*quantize, "--method", method, "--force"]
    if modelopt_python:
        modelopt = [modelopt_python, str(HERE / "modelopt_ptq.py"), source, out, data]
        for method in _MODELOPT_METHODS:
            row = f"modelopt.onnx.quantization, {method}"
            commands[row] = [*modelopt, "--method", method]
    return commands


def _reported(command: Sequence[str], limits: Limits) -> Run | Ended:
    """Return the cost of a process whose last line gives its seconds, and those before them."""
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as folder:
        done = measure(command, limits=limits, folder=Path(folder))
    if isinstance(done, Ended):
        return done
    seconds, before = json.loads(done.output.splitlines()[-1])
    return Run(seconds, done.mebibytes, before)


def _process(command: Sequence[str], limits: Limits, folder: Path) -> Run | Ended:
    done = measure(command, limits=limits, folder=folder)
    return done if isinstance(done, Ended) else Run(done.seconds, done.mebibytes)


def _typical(runs: Sequence[Run | Ended]) -> Run | Ended:
    """Return the median time and the largest peak, or why one of the runs ended."""
    done = [run for run in runs if isinstance(run, Run)]
    if len(done) < len(runs):
        return next(run for run in runs if isinstance(run, Ended))
    return Run(
        statistics.median(run.seconds for run in done),
        max(run.mebibytes for run in done),
        statistics.median(run.before for run in done),
    )


def _with_start(run: Run | Ended) -> Run | Ended:
    return run if isinstance(run, Ended) else Run(run.seconds + run.before, run.mebibytes)


def _cells(
    run: Run | Ended, reference: Run | Ended, fewer: int | None = None
) -> tuple[str, str, str]:
    """Return seconds, their ratio to the reference's, and the peak; `fewer` counts samples."""
    if isinstance(run, Ended):
        return run.reason, "-", "-"
    if fewer:
        return f"{run.seconds:.2f} ({fewer} samples)", "-", f"{run.mebibytes:.0f} ({fewer} samples)"
    ratio = "-" if isinstance(reference, Ended) else f"{run.seconds / reference.seconds:.2f}"
    return f"{run.seconds:.2f}", ratio, f"{run.mebibytes:.0f}"


def _measure_row(model: Model, row: str, count: int) -> tuple[float, float]:
    """Return the seconds that count, and those of starting the session where they do not."""
    samples = Noise(model, count)
    if row == _BARE:
        return _infer(samples)
    tool, name = row.split(", ")
    calibrate = _calibrate if tool == "qdq" else _collect
    return calibrate(samples, name), 0.0


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
    """Return the seconds of `qdq.calibrate`."""
    import qdq

    source = qdq.load(samples.model.path)
    plan = qdq.plan(source)
    start = time.perf_counter()
    qdq.calibrate(source, plan, samples, method=method)
    return time.perf_counter() - start


def _collect(samples: Noise, calibrator: str) -> float:
    """Return the seconds of an ONNX Runtime calibrator for the tensors of `quantize_static`."""
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    operators = sorted({*QDQRegistry, *QLinearOpsRegistry})
    start = time.perf_counter()
    collector = create_calibrator(
        samples.model.path,
        operators,
        "augmented.onnx",
        CalibrationMethod[calibrator],
        extra_options={"symmetric": True},
    )
    collector.collect_data(Reader(samples))
    collector.compute_data()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
