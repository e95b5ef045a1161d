"""Time of calibration by `auto` over many samples, beside bare inference over the same ones.

Run it on a quiet machine, with the interpreter that has qdq's dependencies:

    python benchmarks/bare_inference.py MODEL.onnx[:48x320] ... [--samples 512]

Behind a colon stand the lengths of a model's dynamic dimensions but the first, as in
`calibration.py`. Sixteen samples of seeded noise are repeated. Bare inference is one session of
ONNX Runtime with its own threads, after 16 samples that do not count; calibration is
`qdq.calibrate` with the start of its session. Each is a process of its own. It prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from calibration import Model, Noise
from harness import checkout_environment, markdown_head, markdown_row

_DISTINCT = 16


def main() -> None:
    """Print one row for each model, or run one of its two measurements."""
    parser = argparse.ArgumentParser(description="Time calibration beside bare inference.")
    parser.add_argument("models", nargs="+", type=Model.parse, metavar="MODEL.onnx[:48x320]")
    parser.add_argument("--samples", type=int, default=512, help="(default: %(default)s)")
    parser.add_argument("--row", choices=("bare", "auto"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        print(_MEASUREMENTS[arguments.row](arguments.models[0], arguments.samples))
        return
    print(markdown_head(("model", "bare s", "calibration s", "ratio", "CPU ratio")))
    for model in arguments.models:
        bare, bare_cpu = _run("bare", model, arguments.samples)
        auto, auto_cpu = _run("auto", model, arguments.samples)
        ratios = (f"{auto / bare:.2f}", f"{auto_cpu / bare_cpu:.2f}")
        print(markdown_row((model.path.stem, f"{bare:.1f}", f"{auto:.1f}", *ratios)), flush=True)


def _run(row: str, model: Model, samples: int) -> tuple[float, float]:
    """Return the seconds and the processor seconds of a measurement in its own process."""
    command = [sys.executable, __file__, str(model), "--row", row, "--samples", str(samples)]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=checkout_environment()
    ).stdout
    seconds, processor_seconds = map(float, output.split())
    return seconds, processor_seconds


def _measure_bare(model: Model, samples: int) -> str:
    import onnxruntime as ort

    session = ort.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    distinct = list(Noise(model, _DISTINCT))

    def infer(count: int) -> None:
        for number in range(count):
            session.run(None, distinct[number % _DISTINCT])

    infer(_DISTINCT)
    return _time(lambda: infer(samples))


def _measure_auto(model: Model, samples: int) -> str:
    import qdq

    distinct = list(Noise(model, _DISTINCT))
    feeds = [distinct[number % _DISTINCT] for number in range(samples)]
    plan = qdq.plan(model.path)
    return _time(lambda: qdq.calibrate(model.path, plan, feeds, method="auto"))


def _time(work: Callable[[], object]) -> str:
    start, processor_start = time.perf_counter(), time.process_time()
    work()
    return f"{time.perf_counter() - start} {time.process_time() - processor_start}"


_MEASUREMENTS = {"bare": _measure_bare, "auto": _measure_auto}


if __name__ == "__main__":
    main()
