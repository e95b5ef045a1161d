"""The time of `qdq check` and `qdq quantize` on many small models, by one process and by several.

    python benchmarks/fleet.py fixtures/peers/*.onnx fixtures/networks/*.onnx

The models are copied under other names until there are enough of them. Each time is the shortest of
some runs of the whole command. The floor is what importing onnx alone takes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(command: list[str], repeats: int) -> tuple[float, float]:
    """Return the shortest wall time and the least CPU time of a command, in seconds."""
    walls, processors = [], []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
        walls.append(time.monotonic() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processors.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if done.returncode not in (0, 1, 2):  # 2: some of the models cannot be quantized
            sys.exit(f"{' '.join(command[:6])} ...: exit code {done.returncode}")
    return min(walls), min(processors)


def copy_models(models: list[Path], count: int, folder: Path) -> list[Path]:
    """Copy models under new names until there is a number of them."""
    copies = []
    for number in range(count):
        model = models[number % len(models)]
        copies.append(folder / f"{number:03}-{model.name}")
        shutil.copy(model, copies[-1])
    return copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quantized", type=int, default=12, help="models that are quantized")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores; load before {os.getloadavg()[0]:.1f}")
    floor, floor_cpu = measure([sys.executable, "-c", "import onnx"], arguments.repeats)
    print(f"import onnx alone: {floor:.3f} s, {floor_cpu:.3f} CPU s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = copy_models(arguments.models, arguments.count, folder)
        qdq = [sys.executable, "-m", "qdq"]
        first = str(models[0])
        strip = ["strip", first, "-o", str(folder / "stripped.onnx"), "--force"]
        for words in (["check", first], ["diff", first, first], strip):
            wall, cpu = measure([*qdq, *words], 3 * arguments.repeats)
            print(f"{words[0]} of one model: {wall:.3f} s, {cpu:.3f} CPU s")
        report("check", [*qdq, "check", *map(str, models)], len(models), arguments)
        quantized = models[: arguments.quantized]
        quantize = [*qdq, "quantize", *map(str, quantized), "--data", "noise", "--force"]
        out_dir = ["--out-dir", str(folder / "int8")]
        report("quantize", [*quantize, *out_dir], len(quantized), arguments)


def report(name: str, command: list[str], count: int, arguments: argparse.Namespace) -> None:
    """Print the times of a command with one job and with several."""
    serial, cpu = measure([*command, "--jobs", "1"], arguments.repeats)
    print(f"{name} of {count}: {serial:.2f} s, {cpu:.2f} CPU s, {cpu / count:.4f} CPU s a model")
    parallel, parallel_cpu = measure([*command, "--jobs", str(arguments.jobs)], arguments.repeats)
    ratio = serial / parallel
    print(
        f"  --jobs {arguments.jobs}: {parallel:.2f} s, {parallel_cpu:.2f} CPU s, {ratio:.2f} times"
    )


if __name__ == "__main__":
    main()
