"""Time and memory of `qdq quantize` on ResNet-50, against ONNX Runtime's quantize_static; and what a bare `qdq --help` costs.

Run it from anywhere, with the interpreter that has qdq's dependencies (and nothing more: see `static.py`):

    python benchmarks/quantize.py [--samples 16] [--repeats 3]

Every measurement is a whole process, started in turns: one of each, then again, after a first turn that does not count.
Python keeps its bytecode meanwhile, as it does of installed packages, in a temporary folder. Peak memory is the process's own, from wait4.
It prints and judges nothing: the exit code is 0 unless one of the commands fails, whose words are then shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent
_REFERENCE = "quantize_static, MinMax"
_METHODS = ("max", "auto", "percentile")
_SIDE, _COARSE = 224, 8
_STARTS = 10
_KIB_PER_MIB, _MILLI = 1024, 1000.0


class Run(NamedTuple):
    """What one process took."""

    seconds: float
    mebibytes: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure qdq quantize against ONNX Runtime's quantize_static on ResNet-50."
    )
    parser.add_argument(
        "--samples", type=int, default=16, help="calibration samples (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="runs of each command (default: %(default)s)"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        folder = Path(name)
        _prepare(folder, given.samples)
        environment = _environment(folder)
        runs = _alternate(_commands(folder), environment, given.repeats)
        starts = _alternate(
            {"python -c pass": ["-c", "pass"], "qdq --help": ["-m", "qdq", "--help"]},
            environment,
            _STARTS,
        )
    print(
        f"ResNet-50, {given.samples} samples, {given.repeats} runs of each in turns, {len(os.sched_getaffinity(0))} cores\n"
    )
    _print_table(runs)
    bare, helped = (_median(runs).seconds * _MILLI for runs in starts.values())
    print(
        f"\npython -c pass {bare:.0f} ms, qdq --help {helped:.0f} ms: {helped - bare:.0f} ms more (medians of {_STARTS})"
    )


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
    """Make the inputs in a process of their own: what this one holds would count as its children's peak."""
    process = get_context("spawn").Process(target=make_inputs, args=(folder, samples))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def _commands(folder: Path) -> dict[str, list[str]]:
    """Return the arguments of Python for each row: the reference first."""
    model, out, data = (str(folder / name) for name in ("model.onnx", "out.onnx", "samples"))
    commands = {_REFERENCE: [str(_HERE / "static.py"), model, out, data]}
    for method in _METHODS:
        commands[f"qdq --method {method}"] = [
            "-m",
            "qdq",
            "quantize",
            model,
            "-o",
            out,
            "--data",
            data,
            "--method",
            method,
            "--force",
        ]
    return commands


def _environment(folder: Path) -> dict[str, str]:
    """Return this environment with the checkout's qdq, and with bytecode kept in the folder."""
    given = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**given, "PYTHONPATH": str(_CHECKOUT), "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def _alternate(
    commands: dict[str, list[str]], environment: dict[str, str], repeats: int
) -> dict[str, list[Run]]:
    turns = [
        [_measure(arguments, environment) for arguments in commands.values()]
        for _ in range(repeats + 1)
    ]
    return {row: [turn[i] for turn in turns[1:]] for i, row in enumerate(commands)}


def _measure(arguments: Sequence[str], environment: dict[str, str]) -> Run:
    """Run Python with these arguments; where it fails, show what it wrote and end."""
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=said, stderr=said, env=environment, cwd=_CHECKOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(
                f"python {' '.join(arguments)}: exit code {process.returncode}\n{said.read().decode()}"
            )
    return Run(seconds, used.ru_maxrss / _KIB_PER_MIB)


def _print_table(runs: dict[str, list[Run]]) -> None:
    """Print wall times, the peak over all runs, and both relative to the reference, medians by medians."""
    print(
        f"{'':<26}{'min s':>8}{'median s':>10}{'peak MiB':>10}{'time ratio':>12}{'memory ratio':>14}"
    )
    reference = _median(runs[_REFERENCE])
    for row, measured in runs.items():
        typical = _median(measured)
        ratios = (typical.seconds / reference.seconds, typical.mebibytes / reference.mebibytes)
        fastest, peak = min(run.seconds for run in measured), max(run.mebibytes for run in measured)
        print(
            f"{row:<26}{fastest:>8.2f}{typical.seconds:>10.2f}{peak:>10.0f}{ratios[0]:>12.2f}{ratios[1]:>14.2f}"
        )


def _median(measured: list[Run]) -> Run:
    return Run(
        statistics.median(run.seconds for run in measured),
        statistics.median(run.mebibytes for run in measured),
    )


if __name__ == "__main__":
    main()
