"""Cast models to FP16 with NVIDIA ModelOpt's autocast, for `precision.py --other FOLDER`.

Run it with any Python; `--python` names one that has `nvidia-modelopt[onnx]`:

    python benchmarks/modelopt_autocast.py MODEL.onnx ... --python PYTHON -o FOLDER

Each model is cast on the CPU with autocast's defaults, but that inputs and outputs keep their
types, as `qdq cast` does. It prints a line for each model, and goes on where autocast refuses one.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path


def main() -> None:
    """Cast every model, and print how long each took or why it failed."""
    parser = argparse.ArgumentParser(description="Cast models with ModelOpt's autocast.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--python", required=True, help="a Python that has nvidia-modelopt[onnx]")
    parser.add_argument("-o", "--out", required=True, type=Path, help="folder of the cast models")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for model in arguments.models:
        print(_cast(arguments.python, model, arguments.out / model.name), flush=True)


def _cast(python: str, model: Path, output: Path) -> str:
    """Return the result of one model in a line."""
    command = [python, "-m", "modelopt.onnx.autocast", "--onnx_path", str(model)]
    command += ["--output_path", str(output), "--keep_io_types"]
    start = time.perf_counter()
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    seconds = f"{time.perf_counter() - start:.0f} s"
    if process.returncode:
        lines = (process.stderr or process.stdout).strip().splitlines()
        return f"{model.name}: refused after {seconds}: {lines[-1] if lines else 'no message'}"
    return f"{model.name}: {seconds}"


if __name__ == "__main__":
    main()
