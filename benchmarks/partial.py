"""Quantize real models plainly, with the defaults, and to a budget; write scores as Markdown.

    pip install pillow tokenizers scipy scikit-image        # what the tasks need
    python benchmarks/partial.py --shared ../shared --out partial.jsonl
    python benchmarks/partial.py --report partial.jsonl      # the table of docs/results.md

FP16 around the INT8 beside FP32 needs `--ways default fp16 --exact`: ONNX Runtime quantizes biases
for its integer kernels and divides them by products of two scales, which overflows in FP16.

Every draw of calibration samples by one way is one line of the file, so that a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import markdown_head, markdown_row
from results import DRAWS, Subject

import qdq
from qdq.sensitivity.partial_result import PartialResult

BUDGET_DB = 22.0
#: The ways to quantize with their headers: no guard and no recovery, the defaults, with ranges
#: refined too, a budget, the defaults with FP16 around the INT8.
WAYS = {
    "plain": "all INT8",
    "default": "default",
    "refined": "with refine",
    "budget": f"budget {BUDGET_DB:g} dB",
    "fp16": "FP16 around",
}

Record = dict[str, Any]


def recovery_of(way: str) -> qdq.Recovery:
    """Return the options of a way."""
    if way == "plain":
        return qdq.Recovery(guard=False, methods="off")
    if way == "budget":
        return qdq.Recovery(budget=qdq.Budget(min_snr_db=BUDGET_DB))
    if way == "refined":
        return qdq.Recovery(methods="equalize,refine")
    return qdq.Recovery()


def measure_draw(subject: Subject, draw: int, way: str, folder: Path, *, exact: bool) -> Record:
    """Return score, seconds and shares of one draw by one way."""
    record: Record = {"model": subject.name, "draw": draw, "way": way}
    samples = subject.calibration(draw)
    start = time.perf_counter()
    result = qdq.quantize(
        subject.path,
        samples,
        targets="rtx:sm86",
        recovery=recovery_of(way),
        float_type="fp16" if way == "fp16" else "fp32",
    )
    seconds = time.perf_counter() - start
    out = folder / f"{subject.name}.{way}.onnx"
    qdq.save(result.model, result.source, out, force=True)
    record |= {"seconds": seconds, "score": subject.score(out, exact=exact)}
    if isinstance(result.partial, PartialResult):
        record["int8_work"] = result.partial.int8_work
        record["left_float"] = [layer.node for layer in result.partial.sensitive]
        record["snr_db"] = [result.partial.int8_snr_db, result.partial.snr_db]
    record["recovery"] = [[step.method, step.is_kept] for step in result.recovery]
    return record


def read_records(path: Path) -> list[Record]:
    """Return the records of earlier draws."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def measure(arguments: argparse.Namespace) -> None:
    """Measure all draws that the file lacks."""
    sys.path.insert(0, str(arguments.shared / "tasks"))
    done = {(r["model"], r["draw"], r["way"]) for r in read_records(arguments.out)}
    paths = sorted((arguments.shared / "models").glob("*.onnx"))
    subjects = [
        Subject(path, importlib.import_module)
        for path in paths
        if not arguments.only or path.stem in arguments.only
    ]
    with tempfile.TemporaryDirectory() as folder:
        for draw in range(arguments.draws):
            for subject in subjects:
                for way in arguments.ways:
                    if (subject.name, draw, way) in done:
                        continue
                    exact = arguments.exact
                    record = measure_draw(subject, draw, way, Path(folder), exact=exact)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")


def list_ways(records: list[Record]) -> list[str]:
    """Return the ways that were measured, in the order of the columns."""
    measured = {record["way"] for record in records}
    return [way for way in WAYS if way in measured]


def make_headers(ways: list[str]) -> list[str]:
    """Return the headers of the columns."""
    headers = ["model", "draws"]
    for way in ways:
        headers.append(WAYS[way])
        if way != "plain":
            headers.append("of its work in INT8")
    return headers


def rows(records: list[Record]) -> Iterator[tuple[str, ...]]:
    """Yield one row per model."""
    ways = list_ways(records)
    for model in sorted({record["model"] for record in records}):
        own = [record for record in records if record["model"] == model]
        by_way = {way: [record for record in own if record["way"] == way] for way in ways}
        cells = [model, str(len({record["draw"] for record in own}))]
        for way, draws in by_way.items():
            cells.append(format_scores([record["score"] for record in draws]))
            if way != "plain":
                shares = [record.get("int8_work", float("nan")) for record in draws]
                cells.append(f"{np.mean(shares):.1%}" if draws else "-")
        yield tuple(cells)


def format_scores(scores: list[dict[str, float]]) -> str:
    """Return the means of figures with their names, and their standard errors."""
    parts: list[str] = []
    for name in scores[0] if scores else ():
        values = [score[name] for score in scores]
        digits = 2 if name == "dB" else 3
        text = f"{name} {np.mean(values):.{digits}f}"
        if len(values) > 1:
            error = np.std(values, ddof=1) / len(values) ** 0.5
            text += f" ± {error:.{digits}f}"
        parts.append(text)
    return ", ".join(parts)


def main() -> None:
    """Measure, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--out", type=Path, default=Path("partial.jsonl"))
    parser.add_argument("--only", nargs="*", help="names of models")
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--exact", action="store_true", help="score without integer kernels")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    if arguments.report is None:
        measure(arguments)
        return
    records = read_records(arguments.report)
    print(markdown_head(make_headers(list_ways(records))))
    for row in rows(records):
        print(markdown_row(row))


if __name__ == "__main__":
    main()
