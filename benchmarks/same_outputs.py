"""Compare what two versions of qdq write, byte for byte.

    python benchmarks/same_outputs.py BEFORE AFTER MODEL.onnx...

BEFORE and AFTER are `qdq` commands, such as the ones of two virtual environments. Both quantize
each model with several methods, formats and targets, repair the result, strip it, and export its
ranges; every file must be the same. Plan files are compared without their texts (`notes`, `reasons`
and `why`). Samples are noise of a fixed seed. Exit code 1 where any file differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

NOISE = ("--data", "noise", "--samples", "4")
TARGET = ("--target", "rtx:sm86")
TEXTS = ("notes", "reasons", "why")

#: Commands in the order that they run in one folder; MODEL stands for the model's path.
STEPS: dict[str, tuple[str, ...]] = {
    "plan.yaml": ("plan", "MODEL", *TARGET),
    "auto.onnx": ("quantize", "MODEL", *NOISE, *TARGET, "--save-ranges", "auto.ranges"),
    "max.onnx": ("quantize", "MODEL", *NOISE, "--target", "trt:sm80", "--method", "max"),
    "entropy.onnx": (
        "quantize",
        "MODEL",
        "--ranges",
        "auto.ranges",
        *TARGET,
        "--method",
        "entropy",
    ),
    "fp8.onnx": ("quantize", "MODEL", *NOISE, "--rules", "tensorrt-fp8", "--target", "trt:sm89"),
    "conservative.onnx": ("quantize", "MODEL", *NOISE, "--rules", "tensorrt-conservative"),
    "repaired.onnx": ("quantize", "conservative.onnx", *NOISE, *TARGET),
    "stripped.onnx": ("strip", "auto.onnx"),
    "ranges.cache": ("ranges", "export", "auto.ranges", "--format", "tensorrt-cache"),
}


def main() -> None:
    """Print a line for each model and a word for each file that differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("models", nargs="+", type=Path)
    arguments = parser.parse_args()
    differing = 0
    for model in arguments.models:
        before, after = digests(arguments.before, model), digests(arguments.after, model)
        unequal = [name for name in before if before[name] != after.get(name)]
        differing += len(unequal)
        refused = sum(digest.startswith("exit") for digest in before.values())
        outcome = f"DIFFERS in {', '.join(unequal)}" if unequal else "the same"
        print(
            f"{model.name}: {len(before) - refused} files, {refused} refusals, {outcome}",
            flush=True,
        )
    sys.exit(1 if differing else 0)


def digests(command: str, model: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that a version writes, or the exit code where it writes
    none.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = dict(_run_steps(Path(command).absolute(), model.absolute(), Path(folder)))
        files = sorted(path for path in Path(folder).iterdir() if path.name not in results)
        return {**results, **{path.name: _digest(path) for path in files}}


def _run_steps(command: Path, model: Path, folder: Path) -> Iterator[tuple[str, str]]:
    for output, words in STEPS.items():
        arguments = [str(model) if word == "MODEL" else word for word in words]
        environment = {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run(
            [command, "--no-project", *arguments, "-o", output],
            cwd=folder,
            env=environment,
            capture_output=True,
            check=False,
        )
        path = folder / output
        yield output, _digest(path) if path.exists() else f"exit {done.returncode}"


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".yaml":
        content = json.dumps(_without_texts(yaml.safe_load(content))).encode()
    return hashlib.sha256(content).hexdigest()


def _without_texts(value: Any) -> Any:
    """Return a plan without the sentences that explain it."""
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_texts(item) for key, item in value.items() if key not in TEXTS}
    return value


if __name__ == "__main__":
    main()
