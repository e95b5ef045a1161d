"""Damaged files and generated graphs, by the seed: nothing ends in an exception, and what must hold
of every result does.

    python benchmarks/fuzzing.py files --seeds 0:1000000 --jobs 2 --out DIR
    python benchmarks/fuzzing.py graphs --seeds 0:50000 --jobs 2 --out DIR
    python benchmarks/fuzzing.py show files 4711 --out DIR
    python benchmarks/fuzzing.py report DIR DIR...

`files` damages a small whole file of any kind that qdq reads: models by the fields of their
protocol buffers, YAML, JSON and MessagePack by values, arrays by type and header, all by bytes.
Each is read by the library, and most go through a command too. Allowed are: exit code 0 or 1; or
QdqError, one line and exit code 2, without a file written, changed or left behind. A process that
dies or hangs is a failure of its seed, and the campaign goes on.

`graphs` makes float models (layers, types, bodies, functions, shared weights, odd names,
residual additions in several spellings) and holds plan, quantize, check, check --fix and strip to
the invariants in fuzz/graph_trial.py.

A campaign may run in parts: each range of seeds writes its summary, and `report` merges them into
tables. `show` writes the item of one seed to DIR, and prints what became of it. The exit code is 1
where anything failed.

`coverage KIND --seconds N` lets libFuzzer choose what to change, by the branches that it reaches.
It needs atheris (`pip install atheris`), which is no dependency of qdq.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.file_kinds import KINDS
from fuzz.file_trial import FileTrials
from fuzz.graph_trial import GraphTrials
from fuzz.outcomes import FAILED, Summary, describe_counts, describe_faults, read_summary
from fuzz.workers import LIMIT, MakeTrials, run_campaign

MODES: dict[str, MakeTrials] = {"files": FileTrials, "graphs": GraphTrials}
_REPORT_EVERY = 30.0


def run_mode(arguments: argparse.Namespace) -> int:
    """Run a campaign, write its summary and print it."""
    start, stop = map(int, arguments.seeds.split(":"))
    summary = Summary(arguments.mode)
    summary.seeds.append((start, stop))
    seeds, began, reported = range(start, stop), time.monotonic(), time.monotonic()
    trial_arguments = _trial_arguments(arguments)
    for count, outcomes in enumerate(
        run_campaign(
            MODES[arguments.mode], trial_arguments, seeds, arguments.jobs, arguments.limit
        ),
        1,
    ):
        summary.add(outcomes)
        if time.monotonic() - reported > _REPORT_EVERY:
            reported = time.monotonic()
            pace = 1e3 * (reported - began) / count
            failures = sum(summary.fault_counts.values())
            print(f"{count} of {len(seeds)}, {pace:.1f} ms each, {failures} failures", flush=True)
    _write(summary, arguments.out, f"{arguments.mode}-{start}-{stop}")
    return 1 if summary.faults else 0


def _trial_arguments(arguments: argparse.Namespace) -> Sequence[Any]:
    return (arguments.kinds,) if arguments.mode == "files" else ()


def _write(summary: Summary, folder: Path | None, name: str) -> None:
    report = f"{describe_counts(summary)}\n\n{describe_faults(summary)}\n"
    print(report)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(summary.to_json())
        (folder / f"{name}.md").write_text(report)


def merge_reports(arguments: argparse.Namespace) -> int:
    """Print the summaries of several folders as one for each mode."""
    merged: dict[str, Summary] = {}
    for folder in arguments.folders:
        for path in sorted(folder.glob("*.json")):
            part = read_summary(path)
            merged.setdefault(part.mode, Summary(part.mode)).merge(part)
    for mode, summary in merged.items():
        ranges = ", ".join(f"{start}:{stop}" for start, stop in sorted(summary.seeds))
        print(f"{mode}, seeds {ranges}\n")
        _write(summary, None, mode)
    return 1 if any(summary.faults for summary in merged.values()) else 0


def show_item(arguments: argparse.Namespace) -> int:
    """Write the item of one seed and print what became of it."""
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    trials: Any = MODES[arguments.mode](*_trial_arguments(arguments))
    try:
        for name, content in trials.files(arguments.seed).items():
            (out / name).write_bytes(content)
            print(f"wrote {out / name}")
        outcomes = trials.run(arguments.seed)
    finally:
        trials.close()
    for outcome in outcomes:
        print(f"{outcome.group}, {outcome.command}: {outcome.kind} {outcome.fault}")
        print(outcome.details)
    return 1 if any(outcome.kind == FAILED for outcome in outcomes) else 0


def run_coverage(arguments: argparse.Namespace) -> int:
    from fuzz.coverage import search

    return search(KINDS[arguments.kind], arguments.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files and generated graphs, by the seed.")
    commands = parser.add_subparsers(dest="mode", required=True)
    for mode in MODES:
        campaign = commands.add_parser(mode)
        campaign.add_argument("--seeds", required=True, help="FIRST:LAST+1")
        campaign.add_argument("--jobs", type=int, default=1)
        campaign.add_argument("--out", type=Path, help="folder of the summary")
        campaign.add_argument("--limit", type=float, default=LIMIT, help="seconds for one item")
        campaign.add_argument("--kinds", nargs="*", default=(), choices=KINDS)
        campaign.set_defaults(run=run_mode)
    report = commands.add_parser("report")
    report.add_argument("folders", nargs="+", type=Path)
    report.set_defaults(run=merge_reports)
    show = commands.add_parser("show")
    show.add_argument("mode", choices=MODES)
    show.add_argument("seed", type=int)
    show.add_argument("--out", type=Path, required=True)
    show.add_argument("--kinds", nargs="*", default=(), choices=KINDS)
    show.set_defaults(run=show_item)
    coverage = commands.add_parser("coverage")
    coverage.add_argument("kind", choices=KINDS)
    coverage.add_argument("--seconds", type=int, default=60)
    coverage.set_defaults(run=run_coverage)
    arguments = parser.parse_args()
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
