"""Time and memory of `qdq quantize` on ResNet-50, against ONNX Runtime's quantize_static; and what
a bare `qdq --help` costs.

Run it from anywhere, with the interpreter that has qdq's dependencies (and nothing more: see
`static.py`):

    python benchmarks/quantize.py [--samples 16] [--repeats 3]

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
_METHODS = ("max", "auto", "percentile")
_SIDE, _COARSE = 224, 8
_STARTS = 10
_MILLI = 1000.0
_START_COMMANDS = {"python -c pass": ["-c", "pass"], "qdq --help": ["-m", "qdq", "--help"]}


def main() -> None:
    """Measure and print both comparisons."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        folder = Path(name)
        _prepare(folder, arguments.samples)
        environment = _environment(folder)

        def run(command: list[str]) -> Run:
            return measure_python(command, environment)

        runs = alternate(_commands(folder), arguments.repeats, run)
        starts = alternate(_START_COMMANDS, _STARTS, run)
    setting = f"{arguments.samples} samples, {arguments.repeats} runs of each in turns"
    print(f"ResNet-50, {setting}, {count_cores()} cores\n")
    _print_table(runs)
    _print_starts(starts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Measure qdq quantize against ONNX Runtime's quantize_static on ResNet-50."
    )
    parser.add_argument(
        "--samples", type=int, default=16, help="calibration samples (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each command (default: %(default)s)"
    )
    return parser


def make_inputs(folder: Path, samples: int) -> None:
    """Write the model, and one .npz of a smooth normalised image for each sample."""
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


def _prepare(folder: Path, samples: int) -> None:
    """Make the inputs in a process of their own: what this one holds would count as its children's
    peak.
    """
    process = get_context("spawn").Process(target=make_inputs, args=(folder, samples))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each row: the reference first."""
    model, out, data = (str(folder / name) for name in ("model.onnx", "out.onnx", "samples"))
    commands = {_REFERENCE: [str(HERE / "static.py"), model, out, data]}
    quantize = ["-m", "qdq", "quantize", model, "-o", out, "--data", data, "--force", *PLAIN]
    for method in _METHODS:
        commands[f"qdq --method {method}"] = [*quantize, "--method", method]
    return commands


def _environment(folder: Path) -> dict[str, str]:
    """Return the checkout's environment, with bytecode kept in the folder."""
    environment = checkout_environment(PYTHONPYCACHEPREFIX=str(folder / "bytecode"))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _print_table(runs: dict[str, list[Run]]) -> None:
    """Print wall times, the peak over all runs, and the ratios of medians to the reference's."""
    head = ("min s", "median s", "peak MiB", "time ratio", "memory ratio")
    print(f"{'':<26}" + "".join(f"{title:>14}" for title in head))
    reference = median(runs[_REFERENCE])
    for row, measured in runs.items():
        typical = median(measured)
        cells = (
            f"{min(run.seconds for run in measured):.2f}",
            f"{typical.seconds:.2f}",
            f"{max(run.mebibytes for run in measured):.0f}",
            f"{typical.seconds / reference.seconds:.2f}",
            f"{typical.mebibytes / reference.mebibytes:.2f}",
        )
        print(f"{row:<26}" + "".join(f"{cell:>14}" for cell in cells))


def _print_starts(starts: dict[str, list[Run]]) -> None:
    bare, helped = (median(runs).seconds * _MILLI for runs in starts.values())
    times = f"python -c pass {bare:.0f} ms, qdq --help {helped:.0f} ms"
    print(f"\n{times}: {helped - bare:.0f} ms more (medians of {_STARTS})")


if __name__ == "__main__":
    main()
