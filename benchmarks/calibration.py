"""Time and memory of calibration by each method, relative to bare ONNX Runtime inference over the same samples.

    python benchmarks/calibration.py [MODEL.onnx ...] [--samples 16] [--many 64] [--repeats 2]

Without a model ResNet-50 with random weights is made. Samples are seeded noise, each of dynamic dimensions --size long. Every
measurement is a process of its own, in turns. Time counts from the loaded model: bare inference without its session's start, calibration
with it and with choosing scales. Peak memory is the process's. It prints and judges nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parent.parent
_BARE = "bare ONNX Runtime"
_ROWS = (_BARE, "max", "percentile", "mse", "entropy")
_KIB_PER_MIB = 1024


class Noise:
    """Seeded samples of a model, made one at a time."""

    def __init__(self, model: Path, count: int, size: int) -> None:
        from qdq.feeds import input_specs
        from qdq.index import GraphIndex
        from qdq.loading import load

        self.count, self.size = count, size
        self.specs = input_specs(GraphIndex(load(model)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import numpy as np

        random = np.random.default_rng(0)
        for _ in range(self.count):
            shapes = {s.name: tuple(d or (self.size if i else 1) for i, d in enumerate(s.shape)) for s in self.specs}
            floats = {s.name: np.dtype(s.dtype).kind == "f" for s in self.specs}
            yield {s.name: (random.standard_normal(shapes[s.name]) if floats[s.name] else np.ones(shapes[s.name])).astype(s.dtype) for s in self.specs}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure calibration against bare inference.")
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx", help="models to measure (default: ResNet-50 with random weights)")
    parser.add_argument("--samples", type=int, default=16, help="samples of the timed runs (default: %(default)s)")
    parser.add_argument("--many", type=int, default=64, help="samples of the run whose memory is compared with theirs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="length of dynamic dimensions but the first (default: %(default)s)")
    parser.add_argument("--row", choices=_ROWS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(json.dumps(_measured(given.models[0], given.row, Noise(given.models[0], given.samples, given.size))))
        return
    with tempfile.TemporaryDirectory(prefix="qdq-benchmark-") as name:
        for model in given.models or [_resnet50(Path(name))]:
            _compare(model, given)


def _resnet50(folder: Path) -> Path:
    """Write the model in a process of its own, which gives its memory back."""
    code = "import sys; from networks import resnet50; resnet50(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder / "resnet50.onnx")], cwd=Path(__file__).parent, check=True)
    return folder / "resnet50.onnx"


def _compare(model: Path, given: argparse.Namespace) -> None:
    turns = [{row: _process(model, row, given.samples, given.size) for row in _ROWS} for _ in range(given.repeats)]
    print(f"{model.stem}, {given.samples} samples, {given.repeats} runs of each in turns, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':<20}{'median s':>10}{'ratio':>8}{'peak MiB':>10}{f'peak MiB, {given.many}':>16}")
    seconds = {row: statistics.median(turn[row][0] for turn in turns) for row in _ROWS}
    for row in _ROWS:
        _, many = _process(model, row, given.many, given.size)
        print(f"{row:<20}{seconds[row]:>10.2f}{seconds[row] / seconds[_BARE]:>8.2f}{max(turn[row][1] for turn in turns):>10.0f}{many:>16.0f}", flush=True)
    print()


def _process(model: Path, row: str, samples: int, size: int) -> tuple[float, float]:
    """Return the seconds and the peak MiB of one measurement."""
    arguments = [str(Path(__file__).resolve()), str(model), "--row", row, "--samples", str(samples), "--size", str(size)]
    environment = {**os.environ, "PYTHONPATH": str(_CHECKOUT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    took, peak = json.loads(done.stdout)
    return float(took), float(peak)


def _measured(model: Path, row: str, samples: Noise) -> tuple[float, float]:
    took = _infer(model, samples) if row == _BARE else _calibrate(model, row, samples)
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB_PER_MIB


def _infer(model: Path, samples: Noise) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    for sample in samples:
        session.run(None, sample)
    return time.perf_counter() - start


def _calibrate(model: Path, method: str, samples: Noise) -> float:
    """Return what `qdq.calibrate` takes, its session's start included."""
    import qdq

    source = qdq.load(model)
    plan = qdq.plan(source)
    start = time.perf_counter()
    qdq.calibrate(source, plan, samples, method=method)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
