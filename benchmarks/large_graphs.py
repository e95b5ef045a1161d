"""Processor time and peak memory of every command on generated graphs of 12, 25, 50 and 100
thousand nodes: residual blocks, Concats and attention in turns.

Run it from anywhere, with the interpreter that has qdq's dependencies:

    python benchmarks/large_graphs.py [--nodes 12500 --nodes 25000 ...]

Each cell is one whole process. `quantize` is told all ranges, so that no sample is run. It prints a
Markdown table and judges nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import onnx
from harness import Ended, Run, markdown_head, markdown_row, measure
from planning import network

import qdq

_SIZES = (12_500, 25_000, 50_000, 100_000)
_TARGET = ("--target", "rtx:sm86")
_AMAX = 4.0


def main() -> None:
    """Print one row for each command and size."""
    parser = argparse.ArgumentParser(description="Measure qdq's commands on large graphs.")
    parser.add_argument(
        "--nodes",
        type=int,
        action="append",
        help="size of a graph; may be given several times (default: 12.5, 25, 50 and 100 thousand)",
    )
    arguments = parser.parse_args()
    print(markdown_head(("command", "nodes", "processor s", "ms for 1,000 nodes", "peak MiB")))
    for nodes in arguments.nodes or _SIZES:
        with tempfile.TemporaryDirectory(prefix="qdq-large-") as name:
            for command, run in _measure_commands(Path(name), nodes):
                per_thousand = 1e6 * run.processor_seconds / nodes
                cells = (f"{run.processor_seconds:.1f}", f"{per_thousand:.0f}")
                row = (command, f"{nodes:,}", *cells, f"{run.mebibytes:.0f}")
                print(markdown_row(row), flush=True)


def _measure_commands(folder: Path, nodes: int) -> Iterator[tuple[str, Run]]:
    model, quantized = folder / "model.onnx", folder / "quantized.onnx"
    ranges = folder / "ranges.yaml"
    # in another process: a child counts the memory of this one as its own until it starts a program
    with get_context("spawn").Pool(1) as pool:
        label = pool.apply(_write_files, (model, ranges, nodes))
    output = ("-o", str(folder / "out"), "--force")
    commands = {
        "plan": ("plan", model, *_TARGET, *output),
        "check, float": ("check", model, *_TARGET),
        "explain": ("explain", model, label, *_TARGET),
        "cast": ("cast", model, *output),
        "quantize": ("quantize", model, "--ranges", ranges, *_TARGET, "-o", quantized),
        "check, quantized": ("check", quantized),
        "strip": ("strip", quantized, *output),
        "diff": ("diff", model, quantized),
    }
    for name, command in commands.items():
        line = [sys.executable, "-m", "qdq", *map(str, command)]
        run = measure(["sh", "-c", f"{shlex.join(line)}; test $? -le 1"])
        if isinstance(run, Ended):
            sys.exit(f"{shlex.join(line)}: {run.reason}")
        yield name, run


def _write_files(model: Path, path: Path, nodes: int) -> str:
    """Write a model, and a range for every tensor that a plan quantizes; return a node's name."""
    network_model = network(nodes)
    onnx.save(network_model, model)
    plan = qdq.plan(model, targets=_TARGET[1])
    tensors = {p.edge.qualified_tensor for p in plan.placements if p.quantizer.calibrated}
    path.write_text("".join(f"{tensor}: {_AMAX}\n" for tensor in sorted(tensors)))
    return str(network_model.graph.node[nodes // 2].name)


if __name__ == "__main__":
    main()
