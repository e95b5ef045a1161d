"""Time and memory of `qdq quantize`, against ONNX Runtime's quantize_static; and what a bare
`qdq --help` costs.

Run it from anywhere, with the interpreter that has qdq's dependencies (and nothing more: see
`static.py`):

    python benchmarks/quantize.py [MODEL.onnx[:48x320] ...] [--samples 16] [--repeats 3]

Without a model it makes ResNet-50 with random weights. Behind a colon stand the lengths of a
model's dynamic dimensions but the first, as in `calibration.py`; its samples are seeded noise.
The row with the guard and the recovery of accuracy measures the model, which quantize_static does
not do.

Every measurement is a whole process, started in turns: one of each, then again, after a first turn
that does not count. Python keeps its bytecode meanwhile, as it does of installed packages, in a
temporary folder. Peak memory is the process's own, from wait4. It prints and judges nothing: the
exit code is 0 unless one of the commands fails, whose words are then shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

from calibration import Model, write_samples
from harness import (
    HERE,
    PLAIN,
    Run,
    alternate,
    checkout_environment,
    count_cores,
    measure_python,
    median,
)

_REFERENCE = "quantize_static, MinMax"
_METHODS = ("max", "auto")
_SIDE, _COARSE = 224, 8
_STARTS = 10
_MILLI = 1000.0
_START_COMMANDS = {"python -c pass": ["-c", "pass"], "qdq --help": ["-m", "qdq", "--help"]}


def main() -> None:
    """Measure and print both comparisons."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        folder = Path(name)
        environment = _environment(folder)

        def run(command: list[str]) -> Run:
            return measure_python(command, environment)

        setting = f"{arguments.samples} samples, {arguments.repeats} runs of each in turns"
        for number, model in enumerate(arguments.models or [None]):
            work = folder / str(number)
            work.mkdir()
            _prepare(work, arguments.samples, model)
            path = model.path if model else work / "model.onnx"
            runs = alternate(_commands(path, work), arguments.repeats, run)
            title = model.path.stem if model else "ResNet-50"
            print(f"{title}, {setting}, {count_cores()} cores\n")
            _print_table(runs)
        _print_starts(alternate(_START_COMMANDS, _STARTS, run))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure qdq quantize against ONNX Runtime's quantize_static."
    )
    parser.add_argument(
        "models",
        nargs="*",
        type=Model.parse,
        metavar="MODEL.onnx[:48x320]",
        help="models to measure (default: ResNet-50 with random weights)",
    )
    parser.add_argument(
        "--samples", type=int, default=16, help="calibration samples (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each command (default: %(default)s)"
    )
    return parser


def make_inputs(folder: Path, samples: int) -> None:
    """Write ResNet-50, and one .npz of a smooth normalised image for each sample."""
    import numpy as np
    from networks import resnet50

    resnet50(folder / "model.onnx")
    (folder / "samples").mkdir()
    random = np.random.default_rng(1)
    places = np.linspace(0, _COARSE - 1, _SIDE)
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(_COARSE)), 0)
    for i in range(samples):
        image = weights @ random.standard_normal((3, _COARSE, _COARSE)) @ weights.T
        image = (image - image.mean()) / image.std()
        np.savez(folder / "samples" / f"{i:04}.npz", image=image[None].astype(np.float32))


def _prepare(folder: Path, samples: int, model: Model | None) -> None:
    """Make the inputs in a process of their own: what this one holds would count as its children's
    peak.
    """
    spawn = get_context("spawn")
    if model is None:
        process = spawn.Process(target=make_inputs, args=(folder, samples))
    else:
        process = spawn.Process(target=write_samples, args=(str(model), str(folder), str(samples)))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _commands(model: Path, folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each row: the reference first."""
    out, data = str(folder / "out.onnx"), str(folder / "samples")
    commands = {_REFERENCE: [str(HERE / "static.py"), str(model), out, data]}
    quantize = ["-m", "qdq", "quantize", str(model), "-o", out, "--data", data, "--force"]
    for method in _METHODS:
        commands[f"qdq --method {method}, guard off"] = [*quantize, *PLAIN, "--method", method]
    commands["qdq, with guard and recovery"] = quantize
    return commands


def _environment(folder: Path) -> dict[str, str]:
    """Return the checkout's environment, with bytecode kept in the folder."""
    environment = checkout_environment(PYTHONPYCACHEPREFIX=str(folder / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _print_table(runs: dict[str, list[Run]]) -> None:
    """Print wall times, the peak over all runs, and the ratios of medians to the reference's."""
    head = ("min s", "median s", "CPU s", "peak MiB", "time ratio", "CPU ratio", "more MiB")
    print(f"{'':<32}" + "".join(f"{title:>14}" for title in head))
    reference = median(runs[_REFERENCE])
    for row, measured in runs.items():
        typical = median(measured)
        cells = (
            f"{min(run.seconds for run in measured):.2f}",
            f"{typical.seconds:.2f}",
            f"{typical.processor_seconds:.2f}",
            f"{max(run.mebibytes for run in measured):.0f}",
            f"{typical.seconds / reference.seconds:.2f}",
            f"{typical.processor_seconds / reference.processor_seconds:.2f}",
            f"{typical.mebibytes - reference.mebibytes:.0f}",
        )
        print(f"{row:<32}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    print()


def _print_starts(starts: dict[str, list[Run]]) -> None:
    bare, helped = (median(runs).seconds * _MILLI for runs in starts.values())
    times = f"python -c pass {bare:.0f} ms, qdq --help {helped:.0f} ms"
    print(f"{times}: {helped - bare:.0f} ms more (medians of {_STARTS})")


if __name__ == "__main__":
    main()
