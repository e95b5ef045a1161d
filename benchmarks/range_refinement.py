"""Refine the ranges of real models by the measured output error, and score them before and after.

    pip install pillow tokenizers scipy scikit-image        # what the tasks need
    python benchmarks/range_refinement.py --shared ../shared [--only MODEL...] [--budget 256]

Models, tasks and draws of calibration samples are those of `benchmarks/results.py`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import markdown_head, markdown_row
from results import Subject, spelled

import qdq
from qdq.calibration.methods import parse_method
from qdq.calibration.scale_choice import choose_scales
from qdq.calibration.scales import Scales
from qdq.data.feeds import open_feeds
from qdq.graph.index import GraphIndex
from qdq.graph.loader import load
from qdq.planning.plan_opset import source_at_plan_opset
from qdq.recovery import apply_refinements, refine_ranges

HEADS = (
    "model", "draw", "dB of activations", "ranges", "runs", "s, calibration", "s, refinement",
    "score before", "score after",
)  # fmt: skip


def row(subject: Subject, draw: int, samples: int, budget: int, folder: Path) -> tuple[str, ...]:
    """Return the figures of one model and one draw of its calibration samples."""
    source = load(subject.path)
    plan = qdq.plan(source)
    index = GraphIndex(source_at_plan_opset(source, plan))
    feeds = subject.calibration(draw)
    start = time.perf_counter()
    ranges = qdq.observe(source, plan, feeds)
    scales = choose_scales(index, plan, ranges, parse_method("auto"))
    calibrated = time.perf_counter()
    checked = list(open_feeds(index, feeds[:: len(feeds) // samples][:samples]))
    refinements = refine_ranges(index, plan, scales, ranges, checked, budget)
    end = time.perf_counter()
    before = score(subject, plan, scales, folder)
    after = score(subject, plan, apply_refinements(scales, refinements), folder)
    return (
        subject.name,
        str(draw),
        f"{refinements.snr_before:.2f} -> {refinements.snr_after:.2f}",
        str(len(refinements.ranges)),
        str(refinements.runs),
        f"{calibrated - start:.2f}",
        f"{end - calibrated:.2f}",
        before,
        after,
    )


def score(subject: Subject, plan: qdq.Plan, scales: Scales, folder: Path) -> str:
    """Return the task's figures of the model with some scales."""
    out = folder / "quantized.onnx"
    out.write_bytes(qdq.apply(subject.path, plan, scales).SerializeToString())
    return spelled([subject.score(out)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--draws", type=int, default=2, help="draws of calibration samples")
    parser.add_argument("--samples", type=int, default=6, help="calibration samples that are run")
    parser.add_argument("--budget", type=int, default=256, help="runs of a sample")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(options.shared / "tasks"))
    print(markdown_head(HEADS))
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted((options.shared / "models").glob("*.onnx")):
            if options.only and path.stem not in options.only:
                continue
            subject = Subject(path, importlib.import_module)
            for draw in range(options.draws):
                figures = row(subject, draw, options.samples, options.budget, Path(folder))
                print(markdown_row(figures), flush=True)


if __name__ == "__main__":
    main()
